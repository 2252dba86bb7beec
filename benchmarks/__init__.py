"""Benchmarks: one script a claim; each prints a ratio and ends with one JSON line."""
