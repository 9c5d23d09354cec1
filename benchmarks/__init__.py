"""Benchmarks: `python -m benchmarks NAME [--json FILE]`; README.md says how to read a row."""
