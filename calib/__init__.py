"""From a bundle's floating graphs to INT8 graphs that cost no more accuracy than allowed, and a report to show it."""
