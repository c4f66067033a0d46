"""Benchmarks of image understanding."""
