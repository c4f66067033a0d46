"""Rectified flow, aligned with the understanding encoder."""

from configs import tiny_flow
from tests.conftest import small_flow


def get_config(data):
    """The tiny recipe, smaller."""
    return small_flow(tiny_flow.get_config(), data)
