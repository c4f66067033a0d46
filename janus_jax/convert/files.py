"""Reads and writes files of weights, tensor by tensor: safetensors, and PyTorch's zip files without PyTorch.

A PyTorch file is a zip of a pickle and raw storages. The pickle is read by an unpickler that knows tensors and nothing
else, so a file cannot run code.
"""

import collections
import contextlib
import json
import math
import pickle
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from janus_jax.errors import UserError

SHARD = 4 * 2**30  # bytes of a file that is written
SAFE_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
STORAGES = {
    "FloatStorage": np.dtype("float32"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "HalfStorage": np.dtype("float16"),
    "DoubleStorage": np.dtype("float64"),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
    "CharStorage": np.dtype("int8"),
    "ShortStorage": np.dtype("int16"),
}
USUAL = re.compile(r"(model|pytorch_model|diffusion_pytorch_model|open_clip_(pytorch_)?model)(-\d+-of-\d+)?")


class Folder:
    """The tensors of a folder of weights, or of one file.

    Attributes:
      path: the folder.
      held: {name: (shape, name of the dtype)}.
    """

    def __init__(self, path):
        """Reads headers only.

        Raises:
          UserError: for no weights, a broken or unclear file, a name in two files, a shard that the index names and is
        missing.
        """
        path = Path(path)
        if not path.exists():
            raise UserError(f"Nothing lies at {str(path)!r}.")
        self.path = path if path.is_dir() else path.parent
        self._files, self.held = {}, {}
        for file in _weight_files(path):
            reader = SafetensorsFile(file) if file.suffix == ".safetensors" else TorchFile(file)
            for name, about in reader.held.items():
                if name in self.held:
                    raise UserError(
                        f"{name} stands in {self._files[name].path.name} and in {file.name} of {str(self.path)!r}."
                    )
                self.held[name], self._files[name] = about, reader

    def read(self, name):
        """One tensor, a numpy array.

        Raises:
          UserError: when its bytes are broken.
        """
        return self._files[name].read(name)

    def json(self, name):
        """A JSON file of the folder; {} when it is missing.

        Raises:
          UserError: when it is no JSON.
        """
        file = self.path / name
        if not file.is_file():
            return {}
        try:
            content = json.loads(file.read_text())
        except (ValueError, OSError) as error:
            raise UserError(f"{str(file)!r} cannot be read as JSON: {error}.") from None
        if not isinstance(content, dict):
            raise UserError(f"{str(file)!r} holds no fields.")
        return content


def _weight_files(path):
    """The files that hold a folder's weights: those of its index, or all of the best kind."""
    if path.is_file():
        return [path]
    for ending in (".safetensors", ".bin", ".pt", ".pth"):
        for index in sorted(path.glob(f"*{ending}.index.json")):
            return _indexed_files(index)
        files = sorted(path.glob(f"*{ending}"))
        usual = [file for file in files if USUAL.fullmatch(file.stem)]
        if usual or len(files) == 1:
            return usual or files
        if files:
            raise UserError(f"{str(path)!r} holds {[file.name for file in files]}; say which file with --src.")
    raise UserError(f"{str(path)!r} holds no weights: no .safetensors, .bin, .pt or .pth file.")


def _indexed_files(index):
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{str(index)!r} is no index of shards.") from None
    for file in files:
        if not file.is_file():
            raise UserError(f"{index.name} names {file.name!r}, which is not in {str(index.parent)!r}.")
    return files


class SafetensorsFile:
    """One .safetensors file. It is opened anew for every tensor, so that no more of it than that stays in memory."""

    def __init__(self, path):
        self.path, self.held = path, {}
        with self._open() as file:
            for name in file.keys():
                part = file.get_slice(name)
                dtype = part.get_dtype()
                self.held[name] = (tuple(part.get_shape()), SAFE_DTYPES.get(dtype, dtype))

    def read(self, name):
        with self._open() as file:
            return np.array(file.get_tensor(name))

    def _open(self):
        try:
            return safe_open(self.path, framework="numpy")
        except OSError as error:
            raise UserError(f"{str(self.path)!r} cannot be read: {error}.") from None
        except SafetensorError as error:
            raise UserError(f"{str(self.path)!r} is cut off or no safetensors file: {error}.") from None


class Stored(NamedTuple):
    """Where a tensor lies in a PyTorch file: dtype, storage, first element, shape and strides in elements."""

    dtype: np.dtype
    storage: str
    offset: int
    shape: tuple
    strides: tuple


class TorchFile:
    """One file of `torch.save`: a flat dict of tensors, or one under `model` or `state_dict`."""

    def __init__(self, path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                (pickled,) = [name for name in file.namelist() if name.endswith("data.pkl")]
                self._root = pickled.removesuffix("data.pkl")
                tree = _TensorsOnly(file.open(pickled), path).load()
                sizes = {i.filename: i.file_size for i in file.infolist()}
                self._stored = {k: v for k, v in _state_dict(tree).items() if isinstance(v, Stored)}
                for name, stored in self._stored.items():
                    _check_bounds(stored, sizes.get(f"{self._root}data/{stored.storage}", 0), name)
        except UserError:
            raise
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise UserError(
                f"{str(path)!r} is cut off or no zip file of torch.save ({error}); files of PyTorch before 1.6 must be "
                "saved anew."
            ) from None
        except Exception as error:  # a broken pickle can raise anything
            raise UserError(f"{str(path)!r} holds a broken pickle: {type(error).__name__} {error}.") from None
        if not self._stored:
            raise UserError(f"{str(path)!r} holds no tensors by name.")
        self.held = {name: (s.shape, s.dtype.name) for name, s in self._stored.items()}

    def read(self, name):
        s = self._stored[name]
        try:
            with zipfile.ZipFile(self.path) as file:
                flat = np.frombuffer(file.read(f"{self._root}data/{s.storage}"), s.dtype)[s.offset :]
        except (zipfile.BadZipFile, OSError, KeyError) as error:
            raise UserError(f"{name} cannot be read from {str(self.path)!r}: {error}.") from None
        view = np.lib.stride_tricks.as_strided(flat, s.shape, [step * s.dtype.itemsize for step in s.strides])
        return np.array(view)


def _state_dict(tree):
    """The tensors of a file: itself, or what stands under `model` or `state_dict`."""
    for key in ("model", "state_dict"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            return tree[key]
    return tree if isinstance(tree, dict) else {}


def _check_bounds(stored, size, name):
    """Raises ValueError when a tensor reaches beyond its storage of `size` bytes: the file is damaged or lies."""
    numbers = (stored.offset, *stored.shape, *stored.strides)
    if len(stored.shape) != len(stored.strides) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{name} has no sound shape")
    last = stored.offset + sum((n - 1) * step for n, step in zip(stored.shape, stored.strides, strict=True)) + 1
    if math.prod(stored.shape) and last * stored.dtype.itemsize > size:
        raise ValueError(f"{name} is longer than its storage")


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    if metadata:
        raise ValueError("a tensor is a negated or conjugated view")
    return Stored(*storage, offset, tuple(size), tuple(stride))


class _Inert:
    """Stands for settings that some files carry along; nothing is done with it."""


class _TensorsOnly(pickle.Unpickler):
    """Builds dicts, lists, numbers and `Stored` tensors; everything else that a pickle names is refused."""

    def __init__(self, file, path):
        super().__init__(file)
        self._path = path

    def find_class(self, module, name):
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch", "Size"): tuple,
            ("argparse", "Namespace"): _Inert,
        }
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in known:
            raise UserError(
                f"{str(self._path)!r} is not only tensors: its pickle asks for {module}.{name}, which is not run. If you "
                "trust the file, save its weights as safetensors first."
            )
        return known[module, name]

    def persistent_load(self, pid):
        _, dtype, storage, *_ = pid
        return dtype, storage


@contextlib.contextmanager
def all_or_nothing(folder):
    """Gives a folder to write into, whose content becomes that of `folder` at the end; after a failure nothing is left.

    Raises:
      UserError: when `folder` is not empty or cannot be written.
    """
    folder = Path(folder).absolute()
    try:
        new = not folder.exists()
        if not new and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{str(folder)!r} exists and is not empty; name a new folder with --out.")
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
    except OSError as error:
        raise UserError(f"Nothing can be written into {str(folder)!r}: {error.strerror}.") from None
    try:
        yield partial
        for part in list(partial.iterdir()):
            part.rename(folder / part.name)
        partial.rmdir()
    except BaseException:
        shutil.rmtree(folder if new else partial, ignore_errors=True)
        raise


def write(folder, tensors, *, texts, show):
    """Writes weights as safetensors shards with an index, and other files beside them.

    Args:
      folder: where.
      tensors: iterable of (name, numpy array).
      texts: {file name: text}.
      show: called with the bytes of every tensor that is done.
    """
    _write_shards(folder, tensors, show)
    for name, text in texts.items():
        (folder / name).write_text(text)


def _write_shards(folder, tensors, show):
    shards, waiting, size, where = [], {}, 0, {}

    def flush():
        shards.append(folder / f"{len(shards)}.part")
        save_file(waiting, shards[-1], metadata={"format": "pt"})
        shards[-1].chmod(0o644)  # it comes readable by its owner alone
        where.update(dict.fromkeys(waiting, len(shards)))
        waiting.clear()

    total = 0
    for name, array in tensors:
        if waiting and size + array.nbytes > SHARD:
            flush()
            size = 0
        waiting[name] = array
        size, total = size + array.nbytes, total + array.nbytes
        show(array.nbytes)
    flush()
    if len(shards) == 1:
        shards[0].rename(folder / "model.safetensors")
        return
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for shard, name in zip(shards, names, strict=True):
        shard.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {k: names[i - 1] for k, i in sorted(where.items())}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
