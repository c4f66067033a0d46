"""What a linear map can read from the features of an understanding encoder, on `shapes` in cells.

A feature that a linear probe cannot read is hard to use for the LLM as well; so a probe tells
whether a model that answers wrongly lacks the information or does not use it (Alain and Bengio,
2016).
"""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.errors import UserError
from janus_jax.shapes import world
from janus_jax.shapes.levels import LEVELS

IMAGES, TRAINING = 1_500, 1_000  # images; the first ones fit the probe, the others test it
BATCH = 100
RIDGE = 10.0  # regularisation of the least squares


def probe(sampler, *, seed=0):
    """Accuracies of linear probes on features of new images.

    Args:
      sampler: Sampler of a model whose features are the cells of `shapes`.
      seed: of the images.

    Returns:
      [{'features': 'encoder' or 'adaptor', 'rms', 'occupied', 'shape', 'color', 'cell'}]: the root
      mean square of the features, and the shares of cells of which the probe tells whether an
      object is there, its shape and color, and which cell it is.
    """
    level = LEVELS["cells"]
    understanding = sampler.network.module.understanding
    features = understanding.encoder.num_tokens(level.image_size, level.image_size)
    if (understanding.encoder.image_size, features) != (level.image_size, level.cells**2):
        raise UserError(
            f"The probe needs a model with one feature for each of the {level.cells**2} cells of "
            f"{level.image_size} px images, such as configs/tiny.py; this encoder reads "
            f"{understanding.encoder.image_size} px."
        )
    images, labels = _examples(level, np.random.default_rng((seed, 9)))
    encode = lambda params, images: sampler.network.merge(params).understanding.encode(
        images, dtype=jnp.float32
    )
    adapt = lambda params, images: sampler.network.merge(params).understanding(
        images, dtype=jnp.float32
    )[:, understanding.lead :]
    lines = []
    for name, compute in (("encoder", encode), ("adaptor", adapt)):
        run = jax.jit(compute)
        parts = [run(sampler.params, images[i : i + BATCH]) for i in range(0, IMAGES, BATCH)]
        values = np.concatenate([np.asarray(part) for part in parts])
        rms = float(np.sqrt(np.mean(values**2)))
        lines.append({"features": name, "rms": rms} | _accuracies(values, labels))
    return lines


def _examples(level, rng):
    """Images uint8[M, h, w, 3], and {label: int[M, cells]}, -1 where a cell has none."""
    images, shapes, colors = [], [], []
    for _ in range(IMAGES):
        category = str(rng.choice(world.CATEGORIES, p=world.SHARES))
        scene = world.sample_scene(rng, level, category=category, split="train")
        images.append(world.render(rng, level, scene))
        shape, color = (np.full(level.cells**2, -1) for _ in range(2))
        for thing in scene.things:
            column, row = int(thing.x // level.cell_size), int(thing.y // level.cell_size)
            shape[row * level.cells + column] = world.SHAPES.index(thing.shape)
            color[row * level.cells + column] = list(world.COLORS).index(thing.color)
        shapes.append(shape)
        colors.append(color)
    shape, color = np.stack(shapes), np.stack(colors)
    cell = np.broadcast_to(np.arange(level.cells**2), shape.shape)
    labels = {"occupied": (shape >= 0).astype(int), "shape": shape, "color": color, "cell": cell}
    return np.stack(images), labels


def _accuracies(values, labels):
    """{label: share of test cells that ridge regression on one-hot labels classifies correctly}."""
    x = values.reshape(-1, values.shape[-1])
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    split = TRAINING * values.shape[1]
    accuracies = {}
    for name, label in labels.items():
        y = label.reshape(-1)
        known = y >= 0
        fit, test = known[:split], known[split:]
        one_hot = np.eye(y.max() + 1)[y[:split][fit]]
        inputs = x[:split][fit]
        gram = inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1])
        weights = np.linalg.solve(gram, inputs.T @ one_hot)
        guesses = np.argmax(x[split:][test] @ weights, axis=1)
        accuracies[name] = float(np.mean(guesses == y[split:][test]))
    return accuracies
