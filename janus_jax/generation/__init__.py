"""Ways of drawing. A new one is a file or two here, a line in GENERATION_PATHS, a config and a test."""

from janus_jax.generation.flow import FlowPath
from janus_jax.generation.vq import VQPath

GENERATION_PATHS = {"flow": FlowPath, "vq": VQPath}
