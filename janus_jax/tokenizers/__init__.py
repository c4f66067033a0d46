"""Image tokenizers: VQ-16 and SDXL's VAE."""
