"""Ways of drawing. A new one is a file or two here, a line in PATHS, a config and a test."""

from janus_jax.generation.flow import FlowPath
from janus_jax.generation.vq import VQPath

PATHS = {"flow": FlowPath, "vq": VQPath}
