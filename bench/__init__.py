"""Benchmarks: run by hand, results kept under `bench/results/`."""
