"""Commands that measure; each prints a short table and writes a CSV with its conditions."""
