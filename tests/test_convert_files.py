"""Weight files: safetensors and PyTorch's; damaged and hostile ones."""

import collections
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from janus_jax.convert import files
from janus_jax.errors import UserError

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}


def save_weights(folder, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    save_file(WEIGHTS, folder / name)
    return folder


def test_several_files_of_other_names_must_be_chosen_from(tmp_path):
    save_weights(tmp_path, "x.safetensors")
    assert files.Folder(tmp_path).tensors["a"] == ((2, 3), "float32")
    save_weights(tmp_path, "y.safetensors")
    with pytest.raises(UserError, match="x.safetensors.*y.safetensors.*--src"):
        files.Folder(tmp_path)
    np.testing.assert_array_equal(files.Folder(tmp_path / "y.safetensors").read("a"), WEIGHTS["a"])
    save_weights(tmp_path)
    assert files.Folder(tmp_path).tensors.keys() == WEIGHTS.keys()
    save_weights(tmp_path, "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="a is in two files"):
        files.Folder(tmp_path)


def test_missing_and_truncated_files_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        files.Folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no weights"):
        files.Folder(tmp_path)
    path = save_weights(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="model.safetensors.* truncated"):
        files.Folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    path = save_weights(tmp_path)
    for name in ("config.json", "list.json"):
        with pytest.raises(UserError, match=name):
            files.Folder(path).json(name)
    assert files.Folder(path).json("other.json") == {}


def test_shards_and_their_index(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_SHARD_BYTES", 30)
    sizes = []
    files.write_shards(tmp_path, WEIGHTS.items(), report=sizes.append)
    assert sizes == [24, 8]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == dict(zip("ab", names, strict=True))
    assert index["metadata"]["total_size"] == 32
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(files.Folder(tmp_path).read(name), array)
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=names[1]):
        files.Folder(tmp_path)
    for content in ("[]", "null", '{"weight_map": {"a": 1}}', '{"weight_map": [1]}', "{"):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(UserError, match="model.safetensors.index.json"):
            files.Folder(tmp_path)


def test_a_folder_is_written_completely_or_not_at_all(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file/below"), files.atomic_folder(tmp_path / "file/below"):
        pass
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("x")
    with pytest.raises(UserError, match="full.*not empty"), files.atomic_folder(tmp_path / "full"):
        pass
    assert (tmp_path / "full/mine.txt").read_text() == "x"
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("new", "link"):
        with pytest.raises(ZeroDivisionError), files.atomic_folder(tmp_path / name) as folder:
            (folder / "part").write_text("x")
            raise ZeroDivisionError
    assert not (tmp_path / "new").exists() and not list((tmp_path / "empty").iterdir())
    with files.atomic_folder(tmp_path / "link") as folder:
        (folder / "part").write_text("x")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["part"]


# PyTorch's files.


def test_torch_files_are_read(torch, tmp_path):
    weights = {
        "strided": torch.arange(24.0).reshape(4, 6)[1:3, ::2].t(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
    }
    for content in (weights, {"model": weights, "steps": 3}, {"state_dict": weights}):
        torch.save(content, tmp_path / "x.pt")
        folder = files.Folder(tmp_path / "x.pt")
        assert folder.tensors["half"] == ((3,), "bfloat16")
        for name, tensor in weights.items():
            expected = tensor.detach().float().numpy()
            np.testing.assert_array_equal(folder.read(name).astype(np.float32), expected)
    path = tmp_path / "x.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="x.pt.* truncated"):
        files.Folder(path)


class Hostile:
    """Runs a command when an ordinary unpickler reads it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_pickle_is_not_executed(tmp_path):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Hostile(tmp_path / "marker")))
    with pytest.raises(UserError, match=r"posix\.system"):
        files.Folder(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_tensors_that_exceed_their_storage_are_refused(torch, tmp_path):
    torch.save({"a": torch.arange(8.0)}, tmp_path / "good.pt")
    assert files.Folder(tmp_path / "good.pt").read("a").tolist() == list(range(8))
    for size, strides, offset in (
        ((8,), (-1,), 0),
        ((4,), (1,), -2),
        ((9,), (1,), 0),
        ((2, 2), (1,), 0),
        ((2,), (3.5,), 0),
    ):
        with (
            zipfile.ZipFile(tmp_path / "good.pt") as good,
            zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad,
        ):
            for item in good.infolist():
                content = good.read(item)
                if item.filename.endswith("data.pkl"):
                    content = FalseTensor(size, strides, offset).pickled()
                bad.writestr(item, content)
        with pytest.raises(UserError, match="a has an invalid|a is longer"):
            files.Folder(tmp_path / "bad.pt")


class FalseTensor:
    """The pickle of a tensor with any shape, strides and offset over a storage of 8 floats."""

    def __init__(self, size, strides, offset):
        self.size, self.strides, self.offset = size, strides, offset

    def pickled(self):
        out = io.BytesIO()
        pickler = pickle.Pickler(out, protocol=2)
        pickler.persistent_id = lambda o: o.pid if isinstance(o, Storage) else None
        pickler.dump({"a": self})
        return out.getvalue()

    def __reduce__(self):
        import torch

        storage = Storage(("storage", torch.FloatStorage, "0", "cpu", 8))
        hooks = collections.OrderedDict()
        arguments = (storage, self.offset, self.size, self.strides, False, hooks)
        return torch._utils._rebuild_tensor_v2, arguments


class Storage:
    """A storage by its persistent id."""

    def __init__(self, pid):
        self.pid = pid
