"""Benchmarks of speed, memory and accuracy: what `jobs/benchmark.py` runs.

Read `harness` first: it runs each part of a benchmark in a process of its own, measures the memory and CPU time of that
process and its descendants, and compares the results with goals. A module `..._speed` plans and judges a benchmark; its
parts are in the module `..._processes`.
"""
