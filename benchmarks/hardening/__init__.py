"""Malformed inputs of every format, given to the commands that read them: see :mod:`benchmarks.hardening.__main__`."""
