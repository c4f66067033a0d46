"""Sampling: the KV cache, the compiled loops, and the sampler that commands call."""
