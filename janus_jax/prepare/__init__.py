"""Command: makes data sets, checks them, and caches codes and latents."""
