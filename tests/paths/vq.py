"""Autoregressive generation of codes."""

from configs import tiny
from tests.conftest import small


def get_config(data):
    """The small config of most tests."""
    return small(tiny.get_config(), data)
