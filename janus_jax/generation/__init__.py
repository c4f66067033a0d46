"""Generation paths. A new one is a file here, a line in GENERATION_PATHS, a config and a test."""

from janus_jax.errors import UserError
from janus_jax.generation.flow import FlowPath
from janus_jax.generation.vq import VQPath

GENERATION_PATHS = {"flow": FlowPath, "vq": VQPath}


def generation_path(kind):
    """The generation path of a name in config.

    Raises:
      UserError: for an unknown name; the message lists the known ones.
    """
    if kind not in GENERATION_PATHS:
        raise UserError(
            f"config.model.generation.kind is {kind!r}; known: {sorted(GENERATION_PATHS)}."
        )
    return GENERATION_PATHS[kind]
