"""The nets, and the page that puts them together."""
