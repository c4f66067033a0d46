"""A folder of random weights with the names and shapes of a released model, written shard by shard.

python -m tests.helpers.random_weights configs.pro_1b weights/random
"""

import importlib
import math
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from janus_jax.convert import files
from janus_jax.convert.layouts import LAYOUTS
from janus_jax.recipe.stage import make_stage


def write(folder, config, *, layout="deepseek", seed=0, tokenizer=None):
    """Writes random bfloat16 numbers, below 2 in size, for every tensor of a resolved config."""
    kind = config["model"]["generation"]["kind"]
    abstract = make_stage(config, "stage_3").network.abstract
    layout = LAYOUTS[layout]
    tensors = layout.tensors(kind, abstract)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    shapes |= layout.unused(kind, abstract)
    rng = np.random.default_rng(seed)

    def random_tensors():
        for name, shape in sorted(shapes.items()):
            # Without the top bit of the exponent, numbers are finite and below 2.
            bits = np.frombuffer(rng.bytes(2 * math.prod(shape)), np.uint16) & 0xBFFF
            yield name, bits.view(ml_dtypes.bfloat16).reshape(shape)

    folder = Path(folder)
    folder.mkdir(parents=True)
    files.write_shards(folder, random_tensors(), report=lambda done: None)
    texts = layout.config_texts(config, tokenizer, dtype="bfloat16")
    for name, text in texts.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(sys.argv[2], importlib.import_module(sys.argv[1]).get_config().to_dict())
