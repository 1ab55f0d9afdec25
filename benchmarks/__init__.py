"""Measurements against peers, to be run by hand: python -m benchmarks.recording. None of them is a test."""
