"""Benchmarks of image generation."""
