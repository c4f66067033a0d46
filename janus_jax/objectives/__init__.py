"""What a stage minimises. A new one is a file here, a line in OBJECTIVES, a config and a test."""

from janus_jax.objectives.joint import Joint
from janus_jax.objectives.tokenizer import Tokenizer

OBJECTIVES = {"joint": Joint, "tokenizer": Tokenizer}
