"""Benchmarks: ratios taken within one process."""
