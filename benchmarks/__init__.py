"""Measurements against other tools, run by hand: python -m benchmarks.recording. None of them is a test."""
