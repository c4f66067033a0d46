"""One module per generation path: `get_config(data)` is a small recipe with that path, on the
files of `data`.
"""
