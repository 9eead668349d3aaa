"""What a model's shape costs and earns: variants of one preset, trained alike, timed in one run."""
