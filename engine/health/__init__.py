"""Is a sensor alive in this tile, and why not: statistics, judgement, history, and faults to test them with."""
