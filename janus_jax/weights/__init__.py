"""Released weights: what their tensors are called (one table a layout), and how their files are read and written."""
