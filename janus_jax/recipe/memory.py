"""What a training step needs on each device: the one memory formula, asked by `train` before a run
and by `plan`.

Bytes of the state and the gradients are exact. Those of the activations are an estimate: over the
programs in docs/scale.md the sum is 0.8 to 1.3 of what the compilers report.
"""

import math

import jax

from janus_jax import sharding
from janus_jax.recipe import optimizer
from janus_jax.recipe.freezing import split
from janus_jax.tokenizers.chunks import PIXELS_PER_CHUNK

# Positions of a group whose vocabulary logits exist at once (`layers.cross_entropy`)
LOGIT_POSITIONS = 512
# Maps of the tokenizer at full resolution that exist at once, in fp32
FEATURE_MAPS = 4
# What a block saves per token for the backward pass, in units of (embed_dim, mlp_dim), by remat
# policy
SAVED_WIDTHS = {
    "none": (10, 4),
    "dots": (5, 3),
    "block": (1, 0),
    "offload": (0, 0),
}


def bytes_by_kind(stage):
    """{kind: bytes on a device} of a stage's step; `stage` is a Stage."""
    trainable, frozen = split(stage.abstract_params, stage.frozen)
    parameters = _bytes(trainable)
    return {
        "parameters": parameters,
        "frozen": _bytes(frozen),
        "moments": _bytes(optimizer.abstract_state(stage.tx, trainable, stage.mesh)),
        "average": parameters if stage.ema else 0,
        "gradients": parameters,
        "activations": _activations(stage),
    }


def _bytes(tree):
    leaves = jax.tree.leaves(tree)
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves
    )


def _activations(stage):
    """An estimate of the bytes in addition to the state.

    What blocks save, one block's own activations, gathered weights and gradients that are not yet
    sharded, logits, and the feature maps of the tokenizer.
    """
    settings, llm = stage.settings, stage.model["llm"]
    groups = stage.groups // sharding.batch_divisor(stage.mesh) // settings["microbatches"]
    pixels = _tokenizer_pixels(stage, images=groups * settings["gen_slots"])
    feature_maps = 4 * FEATURE_MAPS * pixels * stage.network.module.generation.tokenizer.width
    if stage.trains_tokenizer:
        return feature_maps
    tensor = stage.mesh.shape["tensor"]
    width = stage.dtype.itemsize
    d, mlp, vocab = llm["embed_dim"], llm["mlp_dim"] // tensor, llm["vocab_size"] // tensor
    tokens = groups * settings["rows"] * settings["length"]

    of_embed, of_mlp = SAVED_WIDTHS[llm["remat"]]
    saved = tokens * (of_embed * d + of_mlp * mlp) * llm["num_layers"]
    one_block = tokens * (8 * d + 4 * mlp)
    layer = (4 * d * d) // tensor + 3 * d * mlp
    weights = 2 * layer + 4 * vocab * d
    if stage.trains("llm/"):
        weights += 2 * (layer + 2 * vocab * d)
    logits = 3 * 4 * groups * LOGIT_POSITIONS * vocab

    return width * (saved + one_block + weights) + max(logits, feature_maps)


def _tokenizer_pixels(stage, *, images):
    """Pixels that the tokenizer has feature maps of at once, on a device that holds `images` images
    to generate.
    """
    generation = stage.model["generation"]
    if stage.trains_tokenizer:
        side = generation["tokenizer_training"]["crop"] or generation["image_size"]
        # The statistics of a step are taken over all microbatches at once.
        return images * stage.settings["microbatches"] * side**2
    pixels = generation["image_size"] ** 2
    return min(images * pixels, max(PIXELS_PER_CHUNK, pixels))
