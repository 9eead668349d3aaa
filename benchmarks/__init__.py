"""Commands that measure; each prints a short table and writes a CSV with its conditions."""

import os

os.environ.setdefault("GEMMNET_CACHE", "")  # what is compared begins from nothing, and runs the graph that it names
