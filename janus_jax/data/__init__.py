"""From records on disk to packed batches. Numpy only: workers must never touch an accelerator."""
