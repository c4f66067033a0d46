"""The contracts between data and model: what one example is, and what one batch holds.

Rows of L tokens are packed in groups: a group is R rows that share U understanding and G generation
image slots, so that slots stay full although the number of images varies from row to row. A batch
has S groups, S x R rows. S is the sharded axis: inserting and extracting images never crosses
devices.
"""

from typing import Any, NamedTuple

import numpy as np

TASKS = ("understanding", "text", "generation")  # the order of every mixture


class Example(NamedTuple):
    """One training example before packing; images are still encoded.

    Attributes:
      tokens: int32[n] text ids; image positions hold the placeholder's id.
      text_weights: float32[n], 1 where the *next* token is a text target.
      task: index into TASKS.
      und_images: images to understand, encoded.
      und_starts: position of each one's first feature.
      gen_images: images to generate, encoded (with latents if these are cached), or cached codes.
      gen_starts: position of each one's first generation token.
      hidden_span: begin and end of tokens that nothing attends to, such as a dropped prompt.
      record_id: 'source/epoch/index', to name it in reports.
    """

    tokens: np.ndarray
    text_weights: np.ndarray
    task: int
    und_images: tuple[Any, ...] = ()
    und_starts: tuple[int, ...] = ()
    gen_images: tuple[Any, ...] = ()
    gen_starts: tuple[int, ...] = ()
    hidden_span: tuple[int, int] = (0, 0)
    record_id: str = ""


class Batch(NamedTuple):
    """Packed rows and their images. Arrays are numpy on the host, jax on the mesh.

    Attributes:
      tokens: int32[S, R, L] text ids; image positions hold the placeholder's id.
      positions: int32[S, R, L], restarting at 0 with every example.
      segment_ids: int32[S, R, L], 1, 2, ... per example; 0 is padding and hidden tokens, which no
        other token attends to.
      text_weights: float32[S, R, L], 1 where the *next* token is a text target.
      task_ids: int8[S, R, L] index into TASKS.
      und_images: uint8[S, U, h, w, 3] images to understand.
      und_start: int32[S, U] flat position in the group's R*L of the first feature; R*L marks an
        unused slot.
      gen_images: uint8[S, G, h, w, 3] images to generate, or None where codes are cached.
      gen_start: int32[S, G] flat position of the first generation token; R*L marks an unused slot.
      gen_codes: int32[S, G, T] cached codes, instead of the pixels, or None.
      gen_latents: float32[S, G, c, h', w'] cached latents, in addition to the pixels, or None.
    """

    tokens: Any
    positions: Any
    segment_ids: Any
    text_weights: Any
    task_ids: Any
    und_images: Any
    und_start: Any
    gen_images: Any
    gen_start: Any
    gen_codes: Any = None
    gen_latents: Any = None


class Counts(NamedTuple):
    """Targets of the whole global batch, the denominators of every loss.

    Attributes:
      text: float32 scalar, text targets of all tasks.
      und_text: float32 scalar, those of understanding examples.
      pure_text: float32 scalar, those of text examples.
      images: float32 scalar, images to generate.
    """

    text: Any
    und_text: Any
    pure_text: Any
    images: Any


def used_slots(batch):
    """bool[S, G], which generation slots of a batch hold an image."""
    return batch.gen_start < batch.tokens.shape[1] * batch.tokens.shape[2]


def task_weights(batch, task):
    """float32[S, R, L], the text weights of the examples of one of TASKS."""
    return batch.text_weights * (batch.task_ids == TASKS.index(task))


def count_targets(batch):
    """Counts of a batch, taken before it is cut into microbatches."""
    return Counts(
        text=batch.text_weights.sum(),
        und_text=task_weights(batch, "understanding").sum(),
        pure_text=task_weights(batch, "text").sum(),
        images=used_slots(batch).sum().astype("float32"),
    )
