"""The tables of README.md, made from the files of ``benchmarks/results``."""
