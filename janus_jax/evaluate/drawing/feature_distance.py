"""Compares two folders of images by a network's features: Frechet distance, similarity of pairs.

The network is the user's own ONNX file, and the metrics are named after it. Only the Frechet
distance under the Inception network of 2015 is called FID.
"""

import os
from typing import NamedTuple

import numpy as np
import rich.progress
from PIL import Image

from janus_jax.data.files import IMAGE_ENDINGS, files_at
from janus_jax.errors import UserError

INCEPTION = "pt_inception-2015-12-05-6726825d"  # the usual file name of the network of FID
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Features:
    """A network that turns images into vectors.

    It runs on the CPU, so that the metrics are the same on every machine.
    """

    def __init__(self, path, mean, std, side=None):
        """Loads the network.

        Args:
          path: ONNX file with one input, float[n, 3, h, w] or float[n, h, w, 3], in RGB.
          mean: one number or three, subtracted from pixel values of 0 to 255.
          std: one number or three, divides the difference.
          side: height and width of the input in pixels, for a network that does not fix them.

        Raises:
          UserError: if onnxruntime is not installed, or the file is no such network.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("--features needs onnxruntime: pip install onnxruntime.") from error
        try:
            self._network = onnxruntime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no class in common
            raise UserError(
                f"{str(path)!r} cannot be loaded as an ONNX network: {error}"
            ) from error
        self._path = str(path)
        inputs = self._network.get_inputs()
        shape = list(inputs[0].shape)
        if (
            len(inputs) != 1
            or len(shape) != 4
            or 3 not in (shape[1], shape[3])
            or inputs[0].type not in FLOATS
        ):
            signature = [(i.type, list(i.shape)) for i in inputs]
            raise UserError(
                f"{self._path!r} takes {signature}; a feature network takes float[n, 3, h, w] or "
                "float[n, h, w, 3]."
            )
        self._name = inputs[0].name
        self._dtype = FLOATS[inputs[0].type]
        self._batch = shape[0] if isinstance(shape[0], int) else None
        self._channels_first = shape[1] == 3
        sides = shape[2:] if self._channels_first else shape[1:3]
        self._sides = tuple(fixed if isinstance(fixed, int) else side for fixed in sides)
        if None in self._sides:
            raise UserError(
                f"{self._path!r} does not fix its input size, {shape}; set it with --features_side."
            )
        if side not in (None, *self._sides):
            raise UserError(
                f"{self._path!r} takes images of {self._sides} pixels, not of "
                f"--features_side={side}."
            )
        self._mean = np.asarray(mean, np.float64)
        self._std = np.asarray(std, np.float64)

    @property
    def metrics(self):
        """Names of the Frechet distance and of the cosine similarity."""
        stem = os.path.splitext(os.path.basename(self._path))[0]
        return (
            "FID" if stem == INCEPTION else f"frechet_distance[{stem}]",
            f"cosine_similarity[{stem}]",
        )

    def __call__(self, images):
        """Features of images.

        Args:
          images: uint8[n, h, w, 3], or a list of uint8[h, w, 3] of several sizes. They are resized
            to the network's size by PIL's bicubic filter, which does not alias.

        Returns:
          float64[n, d]; an output per position (a map or tokens) is averaged over positions.
        """
        size = self._sides[::-1]
        x = np.stack(
            [np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in images]
        )
        x = ((x - self._mean) / self._std).astype(self._dtype)
        if self._channels_first:
            x = x.transpose(0, 3, 1, 2)
        step = self._batch or len(x)
        return np.concatenate(
            [self._run(x[start : start + step], step) for start in range(0, len(x), step)]
        )

    def _run(self, x, step):
        """Calls the network on `x`, padded to `step` images: the network may fix its batch size."""
        padded = np.concatenate([x, *[x[-1:]] * (step - len(x))])
        y = self._network.run(None, {self._name: padded})[0]
        if np.ndim(y) < 2 or len(y) != step or not np.isfinite(y).all():
            raise UserError(
                f"{self._path!r} returns shape {np.shape(y)} or NaN for {step} images; expected "
                "finite features [n, d]."
            )
        y = np.asarray(y, np.float64)[: len(x)]
        channels_first = self._channels_first and y.ndim > 3
        positions = range(2, y.ndim) if channels_first else range(1, y.ndim - 1)
        return y.mean(tuple(positions))


class Comparison(NamedTuple):
    """Real images to compare generated ones with.

    Attributes:
      features: Features.
      reference: folder of the real images.
      settings: the flags that define both, as JSON.
    """

    features: Features
    reference: str
    settings: dict


class Moments:
    """Mean and covariance of features that are added in batches and not stored.

    Each batch is centered on its own mean before it is merged, because sums of squares would lose
    the digits in which two covariances differ.
    """

    def __init__(self):
        """Moments of no features."""
        self.count = 0
        self.mean = 0.0
        self._scatter = 0.0

    def add(self, features):
        """Adds float[n, d]."""
        features = np.asarray(features, np.float64)
        total = self.count + len(features)
        mean = features.mean(0)
        centered = features - mean
        shift = mean - self.mean
        between = np.outer(shift, shift) * (self.count * len(features) / total)
        self._scatter = self._scatter + centered.T @ centered + between
        self.mean = self.mean + shift * (len(features) / total)
        self.count = total

    @property
    def covariance(self):
        """float64[d, d], unbiased."""
        if self.count < 2:
            raise UserError(
                f"A Frechet distance needs at least 2 images in each folder, not {self.count}."
            )
        return self._scatter / (self.count - 1)

    def frechet(self, other):
        """Squared Frechet distance between the Gaussians of two sets.

        With covariances C = F F^T, the trace of the root of C_a C_b is the sum of the singular
        values of F_a^T F_b. So only symmetric matrices are decomposed, and there is no root of a
        value that rounding made negative.
        """
        a, b = self.covariance, other.covariance
        overlap = np.linalg.svd(_factor(a).T @ _factor(b), compute_uv=False).sum()
        distance = np.sum((self.mean - other.mean) ** 2) + np.trace(a) + np.trace(b) - 2 * overlap
        return max(float(distance), 0.0)


def _factor(covariance):
    """Returns F with F F^T = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))


def cosines(features_a, features_b):
    """Cosine similarity of row pairs: float[n, d], float[n, d] -> float64[n]."""
    a, b = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (features_a, features_b)
    )
    return np.sum(a * b, 1)


def distance(folder, comparison: Comparison, *, batch=64):
    """Compares a folder of generated images with a folder of real ones; memory holds one batch.

    Args:
      folder: images at any depth.
      comparison: Comparison. Two images are a pair if their relative paths differ at most in the
        file ending.
      batch: images at once.

    Returns:
      {metric: value}, named after the network, and the numbers of images and pairs. Without pairs
      there is no similarity. The distance decreases with the number of images: compare values of
      equal numbers only.

    Raises:
      UserError: if a folder has fewer than two images, or one that cannot be read.
    """
    features = comparison.features
    sides = (_images_by_name(folder), _images_by_name(comparison.reference))
    names = sorted(
        {*sides[0], *sides[1]}
    )  # pairs are in the same batch, so each image is read once
    moments = (Moments(), Moments())
    similarities = []
    for start in rich.progress.track(range(0, len(names), batch), description="features"):
        vectors = []
        for files, side_moments in zip(sides, moments, strict=True):
            part = [name for name in names[start : start + batch] if name in files]
            rows = features([_open(files[name]) for name in part]) if part else []
            if part:
                side_moments.add(rows)
            vectors.append(dict(zip(part, rows, strict=True)))
        pairs = [name for name in vectors[0] if name in vectors[1]]
        if pairs:
            generated, real = (np.stack([side[name] for name in pairs]) for side in vectors)
            similarities += list(cosines(generated, real))
    frechet_name, cosine_name = features.metrics
    result = {frechet_name: moments[0].frechet(moments[1])}
    if similarities:
        result[cosine_name] = float(np.mean(similarities))
    return {
        **result,
        "drawn": moments[0].count,
        "reference": moments[1].count,
        "pairs": len(similarities),
    }


def _images_by_name(folder):
    """{relative path without its ending: file}."""
    files = files_at(str(folder), *IMAGE_ENDINGS)
    root = os.path.expanduser(folder)
    by_name = {os.path.splitext(os.path.relpath(file, root))[0]: file for file in files}
    if len(by_name) < len(files):
        raise UserError(
            f"{str(folder)!r} has images whose names differ only in the ending, such as a.jpg and "
            "a.png."
        )
    return by_name


def _open(file):
    """uint8[h, w, 3]."""
    try:
        return np.asarray(Image.open(file).convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{file!r} cannot be read as an image: {error}") from error
