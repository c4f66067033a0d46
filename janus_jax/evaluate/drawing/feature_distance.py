"""Two folders of pictures compared in the features of a network: Frechet distance, and cosine similarity of pairs.

The network is the user's own ONNX file, and figures are named after it. FID is the Frechet distance under one network
only, and only figures of that one are called so.
"""

import os

import numpy as np
import rich.progress
from PIL import Image

from janus_jax.data.files import PICTURES, files_at
from janus_jax.errors import UserError

INCEPTION = "pt_inception-2015-12-05-6726825d"  # the network of FID, by the name that its file goes around under
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Features:
    """A network that turns pictures into vectors.

    Runs on the CPU, where the same file gives the same figure on every machine.
    """

    def __init__(self, path, mean, std, side=None):
        """Loads the network.

        Args:
          path: ONNX file with one input, float[n, 3, h, w] or float[n, h, w, 3], in RGB.
          mean: a number, or three, subtracted from values of 0 to 255.
          std: a number, or three, that the rest is divided by.
          side: height and width of the input, where the network leaves them open.

        Raises:
          UserError: without onnxruntime, or where the file is no such network.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("Features of pictures need onnxruntime: pip install onnxruntime.") from error
        try:
            self._network = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class in common
            raise UserError(f"{str(path)!r} is no ONNX network that can be loaded: {error}") from error
        self._path = str(path)
        inputs = self._network.get_inputs()
        shape = list(inputs[0].shape)
        if len(inputs) != 1 or len(shape) != 4 or 3 not in (shape[1], shape[3]) or inputs[0].type not in FLOATS:
            found = [(i.type, list(i.shape)) for i in inputs]
            raise UserError(f"{self._path!r} takes {found}; a feature network takes float[n, 3, h, w] or float[n, h, w, 3].")
        self._name, self._dtype = inputs[0].name, FLOATS[inputs[0].type]
        self._batch = shape[0] if isinstance(shape[0], int) else None
        self._channels_first = shape[1] == 3
        sides = shape[2:] if self._channels_first else shape[1:3]
        self._sides = tuple(own if isinstance(own, int) else side for own in sides)
        if None in self._sides:
            raise UserError(f"{self._path!r} leaves its input's side open, {shape}; name one with --features_side.")
        if side not in (None, *self._sides):
            raise UserError(f"{self._path!r} takes pictures of {self._sides} pixels, not of {side}.")
        self._mean, self._std = np.asarray(mean, np.float64), np.asarray(std, np.float64)

    @property
    def figures(self):
        """Names of the two figures: of the Frechet distance and of the cosine similarity."""
        stem = os.path.splitext(os.path.basename(self._path))[0]
        return "FID" if stem == INCEPTION else f"frechet_distance[{stem}]", f"cosine_similarity[{stem}]"

    def __call__(self, pictures):
        """Features of pictures.

        Args:
          pictures: uint8[n, h, w, 3], or a list of uint8[h, w, 3] of several sizes. PIL's bicubic filter brings them to
            the network's own size; it widens as a picture shrinks, so nothing aliases.

        Returns:
          float64[n, d]; an output with places, a map or a row of tokens, is averaged over them.
        """
        size = self._sides[::-1]
        x = np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pictures])
        x = ((x - self._mean) / self._std).astype(self._dtype)
        if self._channels_first:
            x = x.transpose(0, 3, 1, 2)
        step = self._batch or len(x)
        return np.concatenate([self._run(x[start : start + step], step) for start in range(0, len(x), step)])

    def _run(self, x, step):
        """One call of the network, which may want batches of one size only: the last is filled up with its last."""
        y = self._network.run(None, {self._name: np.concatenate([x, *[x[-1:]] * (step - len(x))])})[0]
        if np.ndim(y) < 2 or len(y) != step or not np.isfinite(y).all():
            raise UserError(f"{self._path!r} answers {step} pictures with {np.shape(y)} or with NaN; features are [n, d].")
        y = np.asarray(y, np.float64)[: len(x)]
        places = tuple(range(2, y.ndim)) if self._channels_first and y.ndim > 3 else tuple(range(1, y.ndim - 1))
        return y.mean(places)


class Moments:
    """Mean and covariance of features that arrive in batches, of which none is kept.

    Each batch is centred on its own mean before it is merged: sums of plain squares would lose the digits that the
    difference of two covariances is made of.
    """

    def __init__(self):
        """Nothing seen yet."""
        self.count, self.mean, self._scatter = 0, 0.0, 0.0

    def add(self, features):
        """Takes in float[n, d]."""
        features = np.asarray(features, np.float64)
        total = self.count + len(features)
        mean = features.mean(0)
        centred, shift = features - mean, mean - self.mean
        self._scatter = self._scatter + centred.T @ centred + np.outer(shift, shift) * (self.count * len(features) / total)
        self.mean = self.mean + shift * (len(features) / total)
        self.count = total

    @property
    def covariance(self):
        """float64[d, d], unbiased."""
        if self.count < 2:
            raise UserError(f"A Frechet distance needs at least 2 pictures on either side, not {self.count}.")
        return self._scatter / (self.count - 1)

    def frechet(self, other):
        """Squared Frechet distance between the Gaussians of two sets.

        With C = F F^T on either side, the trace of the root of C_a C_b is the sum of the singular values of F_a^T F_b. So
        nothing but symmetric matrices is taken apart, and no root is taken of what rounding left of a zero.
        """
        a, b = self.covariance, other.covariance
        overlap = np.linalg.svd(_factor(a).T @ _factor(b), compute_uv=False).sum()
        distance = np.sum((self.mean - other.mean) ** 2) + np.trace(a) + np.trace(b) - 2 * overlap
        return max(float(distance), 0.0)


def _factor(covariance):
    """F with F F^T = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))


def frechet(features_a, features_b):
    """Squared Frechet distance of float[n, d] and float[m, d], each taken for a Gaussian."""
    a, b = Moments(), Moments()
    a.add(features_a)
    b.add(features_b)
    return a.frechet(b)


def cosines(features_a, features_b):
    """Cosine similarity of each pair of rows: float[n, d] twice gives float64[n]."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (features_a, features_b))
    return np.sum(a * b, 1)


def distance(drawn_folder, reference_folder, features, *, batch=64):
    """Compares two folders of pictures; memory holds one batch of them at a time.

    Args:
      drawn_folder: pictures, at any depth.
      reference_folder: pictures; those whose path is the same but for its ending, such as .jpg for .png, are pairs.
      features: a `Features`.
      batch: pictures at a time.

    Returns:
      {figure: value}, named after the network, and how many pictures and pairs made them. Without pairs there is no
      similarity. The distance falls as pictures grow in number: compare only figures of the same counts.

    Raises:
      UserError: where a folder has fewer than two pictures, or one that cannot be read.
    """
    sides = _by_name(drawn_folder), _by_name(reference_folder)
    names = sorted(set().union(*sides))  # in one order, so pairs come together and each picture is read once
    moments, similarities = (Moments(), Moments()), []
    for start in rich.progress.track(range(0, len(names), batch), description="features"):
        rows = []
        for files, seen in zip(sides, moments, strict=True):
            here = [name for name in names[start : start + batch] if name in files]
            vectors = features([_open(files[name]) for name in here]) if here else []
            if here:
                seen.add(vectors)
            rows.append(dict(zip(here, vectors, strict=True)))
        pairs = [name for name in rows[0] if name in rows[1]]
        if pairs:
            similarities += list(cosines(*(np.stack([side[name] for name in pairs]) for side in rows)))
    frechet_name, cosine_name = features.figures
    result = {frechet_name: moments[0].frechet(moments[1])}
    if similarities:
        result[cosine_name] = float(np.mean(similarities))
    return {**result, "drawn": moments[0].count, "reference": moments[1].count, "pairs": len(similarities)}


def _by_name(folder):
    """{path in the folder, without its ending: file}."""
    files = files_at(str(folder), *PICTURES)
    named = {os.path.splitext(os.path.relpath(file, os.path.expanduser(folder)))[0]: file for file in files}
    if len(named) < len(files):
        raise UserError(f"{str(folder)!r} has pictures that differ in nothing but the ending, such as a.jpg beside a.png.")
    return named


def _open(file):
    """uint8[h, w, 3]."""
    try:
        return np.asarray(Image.open(file).convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{file!r} cannot be read as a picture: {error}") from error
