"""A folder of random weights with the names and shapes of a released model, written shard by shard.

python -m tests.synthetic configs.pro_1b weights/random
"""

import importlib
import math
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from janus_jax.convert import files, name_map
from janus_jax.convert.layouts import tables, write_config
from janus_jax.recipe import assembly


def write(folder, config, *, layout="deepseek", seed=0, tokenizer=None):
    """Random bfloat16 of every tensor, below 2 in size; `config` is a resolved one."""
    kind, abstract = config["model"]["generation"]["kind"], assembly.build_network(config, "stage_3").abstract
    tensors = name_map.spell_out(tables.JANUS[layout, kind], tables.stored(kind, abstract), layout=layout)
    shapes = {key: t.shape for key, t in tensors.items()} | tables.unused(layout, kind, abstract)
    rng = np.random.default_rng(seed)

    def random():
        for key, shape in sorted(shapes.items()):
            bits = np.frombuffer(rng.bytes(2 * math.prod(shape)), np.uint16) & 0xBFFF
            yield key, bits.view(ml_dtypes.bfloat16).reshape(shape)

    texts = write_config.write(layout, config, tokenizer, dtype="bfloat16")
    Path(folder).mkdir(parents=True)
    files.write(Path(folder), random(), texts=texts, show=lambda done: None)


if __name__ == "__main__":
    write(sys.argv[2], importlib.import_module(sys.argv[1]).get_config().to_dict())
