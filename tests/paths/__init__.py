"""One module a way of drawing: `get_config(data)` is a small recipe that draws that way, on the files of `data`."""
