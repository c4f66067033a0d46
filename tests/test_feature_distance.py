"""Distances of image sets: closed forms, batches, networks that do not fit, folders of images."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.evaluate.drawing import feature_distance
from janus_jax.evaluate.drawing.feature_distance import Comparison
from tests.conftest import OFFICIAL_DATA


def random_images(n, seed=0, side=8):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)


def gaussian(n, mean, std, seed):
    """Samples whose mean and unbiased covariance are exactly those asked for."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x = np.linalg.qr(x - x.mean(0))[0] * np.sqrt(n - 1)
    return x * np.asarray(std) + np.asarray(mean)


def frechet(*features):
    moments = [feature_distance.Moments() for _ in features]
    for each, values in zip(moments, features, strict=True):
        each.add(values)
    return moments[0].frechet(moments[1])


def test_frechet_distance_has_its_closed_form():
    means, stds = ([1.0, -2.0, 300.0], [0.0, 1.0, 301.0]), ([1.0, 2.0, 0.1], [3.0, 0.5, 0.0])
    a, b = (gaussian(50, m, s, i) for i, (m, s) in enumerate(zip(means, stds)))
    expected = np.sum(np.subtract(*means) ** 2) + np.sum(np.subtract(*stds) ** 2)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    few = np.random.default_rng(2).normal(
        size=(5, 40)
    )  # fewer images than features: a singular covariance
    assert frechet(few, few) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="at least 2 .* not 1"):
        frechet(a, b[:1])


def test_moments_of_batches_are_those_of_all():
    x = np.random.default_rng(0).normal(1e4, 1, (101, 7))
    moments = feature_distance.Moments()
    for start in range(0, len(x), 8):
        moments.add(x[start : start + 8])
    assert moments.count == 101
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T), rtol=1e-9, atol=1e-9)


class Session:
    """Stands in for a network: the mean of each channel, as a map of two places."""

    shape, kind = ["n", 3, 4, 6], "tensor(float)"

    def __init__(self, path, providers):
        if not Path(path).is_file():
            raise RuntimeError("no such file")
        self.seen = []

    def get_inputs(self):
        return [types.SimpleNamespace(name="image", shape=self.shape, type=self.kind)]

    def run(self, names, feed):
        x = feed["image"]
        self.seen.append(x)
        y = x.mean((2, 3) if self.shape[1] == 3 else (1, 2))
        return [np.stack([y - 1, y + 1], -1)[..., None] if self.shape[1] == 3 else y]


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Makes `Features` of a stub with a certain input."""
    path = tmp_path / "channel-means.onnx"
    path.touch()

    def make(shape, *, side=None, kind="tensor(float)", file=path):
        stub = type("Stub", (Session,), dict(shape=shape, kind=kind))
        monkeypatch.setitem(
            sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=stub)
        )
        return feature_distance.Features(file, mean=(10, 20, 30), std=2, side=side)

    return make


def test_images_are_resized_to_the_network(network):
    flat = np.broadcast_to(np.array([14, 20, 36], np.uint8), (3, 9, 9, 3))
    expected = np.broadcast_to([2.0, 0.0, 3.0], (3, 3))
    for shape, side, calls in (
        (["n", 3, 4, 6], None, [3]),
        ([2, 4, 6, 3], None, [2, 2]),
        ([None, 3, "h", "w"], 5, [3]),
    ):
        features = network(shape, side=side)
        result = features(flat)
        assert result.dtype == np.float64
        np.testing.assert_allclose(result, expected)
        fed = features._network.seen
        assert [len(x) for x in fed] == calls and fed[0].dtype == np.float32
        assert sorted(fed[0].shape[1:]) == ([3, 5, 5] if side else [3, 4, 6])
    assert network([1, 3, 4, 6])([flat[0], flat[0, :5]]).shape == (2, 3)  # images of several sizes
    noise = random_images(1, side=64)
    shrunk = network(["n", 3, 4, 4])
    shrunk(noise)
    assert (
        shrunk._network.seen[0].std() * 2 < noise.std() / 4
    )  # the filter does not alias: noise averages out


def test_metrics_are_named_after_their_network(network, tmp_path):
    assert network(["n", 3, 4, 4]).metrics == (
        "frechet_distance[channel-means]",
        "cosine_similarity[channel-means]",
    )
    inception = tmp_path / "pt_inception-2015-12-05-6726825d.onnx"
    inception.touch()
    assert network(["n", 3, 4, 4], file=inception).metrics[0] == "FID"


def test_wrong_networks(network, monkeypatch, tmp_path):
    for shape, side, kind, message in (
        (["n", 1, 4, 4], None, "tensor(float)", "feature network"),
        (["n", 3, 4, 4], None, "tensor(int64)", "feature network"),
        (["n", 3, "h", "w"], None, "tensor(float)", "--features_side"),
        (["n", 3, 4, 4], 8, "tensor(float)", r"\(4, 4\) pixels.*8"),
    ):
        with pytest.raises(UserError, match=message):
            network(shape, side=side, kind=kind)
    with pytest.raises(UserError, match="gone.onnx.*no such file"):
        network(["n", 3, 4, 4], file=tmp_path / "gone.onnx")
    broken = network(["n", 3, 4, 4])
    broken._network.run = lambda names, feed: [np.full((1, 3), np.nan)]
    with pytest.raises(UserError, match="NaN"):
        broken(random_images(1))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime"):
        feature_distance.Features(tmp_path / "channel-means.onnx", 0, 1)


def test_folders_and_pairs(network, tmp_path):
    generated, reference = tmp_path / "generated", tmp_path / "reference"
    for folder, ending, names in ((generated, "png", "abcd"), (reference, "bmp", "cdefg")):
        (folder / "sub").mkdir(parents=True)
        for i, name in enumerate(names):
            side = 5 + i if folder == reference else 8
            Image.fromarray(random_images(1, seed=ord(name), side=side)[0]).save(
                folder / f"sub/{name}.{ending}"
            )
    features = network(["n", 3, 4, 4])
    comparison = Comparison(features, str(reference), settings={})
    result = feature_distance.distance(generated, comparison, batch=2)
    a, b = (
        features([np.asarray(Image.open(p)) for p in sorted(folder.rglob("*.*"))])
        for folder in (generated, reference)
    )
    assert result.pop("frechet_distance[channel-means]") == pytest.approx(frechet(a, b))
    assert result.pop("cosine_similarity[channel-means]") == pytest.approx(
        feature_distance.cosines(a[2:], b[:2]).mean()
    )
    assert result == {"drawn": 4, "reference": 5, "pairs": 2}
    (generated / "sub").rename(generated / "other")
    assert "cosine_similarity[channel-means]" not in feature_distance.distance(
        generated, comparison
    )

    (reference / "sub/c.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="reference"):
        feature_distance.distance(generated, comparison)
    (reference / "sub/c.bmp").unlink()
    with pytest.raises(UserError, match="c.jpg'"):
        feature_distance.distance(generated, comparison)
    with pytest.raises(UserError, match="gone"):
        feature_distance.distance(tmp_path / "gone", comparison)


@pytest.mark.skipif(
    not (OFFICIAL_DATA / "weights_fastestdet").is_dir(), reason="needs a real network"
)
def test_a_real_network(tmp_path):
    pytest.importorskip("onnxruntime")
    features = feature_distance.Features(
        OFFICIAL_DATA / "weights_fastestdet/FastestDet.onnx", 0, 255
    )
    assert features(random_images(3)).shape == (3, 85)  # a network that takes one image at a time
    for folder, seed in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(random_images(4, seed=seed)):
            Image.fromarray(image).save(tmp_path / folder / f"{i}.png")
    name = "frechet_distance[FastestDet]"
    distance = lambda a, b: feature_distance.distance(
        tmp_path / a, Comparison(features, str(tmp_path / b), {})
    )
    same = distance("a", "a")
    assert same[name] == pytest.approx(0, abs=1e-6) and same[
        "cosine_similarity[FastestDet]"
    ] == pytest.approx(1)
    assert distance("a", "b")[name] > same[name]
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    with pytest.raises(UserError, match="broken.onnx"):
        feature_distance.Features(tmp_path / "broken.onnx", 0, 1)
