"""Benchmarks: `python -m bench MEASURE` runs cases × libraries and keeps results; README.md beside this says how."""
