"""Reads and writes weight files tensor by tensor: safetensors, and PyTorch's without PyTorch.

A PyTorch file is a zip of a pickle and raw storages. The pickle is read by an unpickler that builds
tensors and refuses everything else, so a file cannot run code.
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

MAX_SHARD_BYTES = 4 * 2**30
SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
STORAGE_DTYPES = {
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
STANDARD_NAMES = re.compile(
    r"(model|pytorch_model|diffusion_pytorch_model|open_clip_(pytorch_)?model)(-\d+-of-\d+)?"
)


class Folder:
    """The tensors and JSON files of a folder of weights, or of one weight file and its folder.

    Attributes:
      path: the folder.
      tensors: {name: (shape, name of the dtype)}.
    """

    def __init__(self, path):
        """Reads the headers of the weight files.

        Raises:
          UserError: when there are no weights or several candidates, for a damaged file, a
            tensor that is in two files, and a missing shard.
        """
        path = Path(path)
        if not path.exists():
            raise UserError(f"No file or folder {str(path)!r}.")
        self.path = path if path.is_dir() else path.parent
        self.tensors = {}
        self._files = {}
        for file in _weight_files(path):
            reader = SafetensorsFile(file) if file.suffix == ".safetensors" else TorchFile(file)
            for name, shape_and_dtype in reader.tensors.items():
                if name in self.tensors:
                    both = f"{self._files[name].path.name} and {file.name}"
                    raise UserError(f"{name} is in two files of {str(self.path)!r}: {both}.")
                self.tensors[name] = shape_and_dtype
                self._files[name] = reader

    def read(self, name):
        """Reads one tensor as a numpy array.

        Raises:
          UserError: when its bytes are damaged.
        """
        return self._files[name].read(name)

    def json(self, name):
        """Reads a JSON file of the folder; {} when it is missing.

        Raises:
          UserError: when it is not a JSON object.
        """
        file = self.path / name
        if not file.is_file():
            return {}
        try:
            content = json.loads(file.read_text())
        except (ValueError, OSError) as error:
            raise UserError(f"{str(file)!r} cannot be read as JSON: {error}.") from None
        if not isinstance(content, dict):
            raise UserError(f"{str(file)!r} must hold a JSON object with named fields.")
        return content


def _weight_files(path):
    """The weight files of a folder: those of its index, or all of the first kind that it has."""
    if path.is_file():
        return [path]
    for ending in (".safetensors", ".bin", ".pt", ".pth"):
        for index in sorted(path.glob(f"*{ending}.index.json")):
            return _indexed_files(index)
        files = sorted(path.glob(f"*{ending}"))
        standard = [file for file in files if STANDARD_NAMES.fullmatch(file.stem)]
        if standard or len(files) == 1:
            return standard or files
        if files:
            names = [file.name for file in files]
            raise UserError(
                f"{str(path)!r} has several weight files, {names}; choose one: --src=FILE."
            )
    raise UserError(f"{str(path)!r} has no weights: no .safetensors, .bin, .pt or .pth file.")


def _indexed_files(index):
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(
            f"{str(index)!r} is not an index of shards: it needs a weight_map, {{tensor: file}}."
        ) from None
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{str(index.parent)!r} misses the shard {file.name!r}, which {index.name} names."
            )
    return files


class SafetensorsFile:
    """One .safetensors file; opened for each tensor, so that only that tensor is in memory."""

    def __init__(self, path):
        self.path = path
        self.tensors = {}
        with self._open() as file:
            for name in file.keys():
                header = file.get_slice(name)
                dtype = SAFETENSORS_DTYPES.get(header.get_dtype(), header.get_dtype())
                self.tensors[name] = (tuple(header.get_shape()), dtype)

    def read(self, name):
        """Reads one tensor as a numpy array of its shape and dtype in `tensors`."""
        with self._open() as file:
            return np.array(file.get_tensor(name))

    def _open(self):
        try:
            return safe_open(self.path, framework="numpy")
        except OSError as error:
            raise UserError(f"{str(self.path)!r} cannot be read: {error}.") from None
        except SafetensorError as error:
            raise UserError(
                f"{str(self.path)!r} is truncated or not a safetensors file: {error}."
            ) from None


class TorchTensor(NamedTuple):
    """A tensor of a PyTorch file.

    Attributes:
      dtype: of its elements.
      storage: name of the storage that has its elements.
      offset: number of its first element there.
      shape: of the tensor.
      strides: in elements.
    """

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
            with zipfile.ZipFile(path) as archive:
                self._read_headers(archive)
        except UserError:
            raise
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise UserError(
                f"{str(path)!r} is truncated or not a zip file of torch.save ({error}); save files "
                "of PyTorch before 1.6 again with a newer one."
            ) from None
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(
                f"{str(path)!r} has a damaged pickle: {type(error).__name__} {error}."
            ) from None
        if not self._tensors:
            raise UserError(f"{str(path)!r} has no named tensors.")
        self.tensors = {name: (t.shape, t.dtype.name) for name, t in self._tensors.items()}

    def _read_headers(self, archive):
        (pickle_name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        self._root = pickle_name.removesuffix("data.pkl")
        content = _TensorUnpickler(archive.open(pickle_name), self.path).load()
        state = _state_dict(content)
        self._tensors = {name: t for name, t in state.items() if isinstance(t, TorchTensor)}
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        for name, tensor in self._tensors.items():
            _check_bounds(tensor, sizes.get(self._storage_file(tensor), 0), name)

    def _storage_file(self, tensor):
        return f"{self._root}data/{tensor.storage}"

    def read(self, name):
        """Reads one tensor as a numpy array of its shape and dtype in `tensors`.

        Raises:
          UserError: when its bytes are damaged.
        """
        tensor = self._tensors[name]
        try:
            with zipfile.ZipFile(self.path) as archive:
                content = archive.read(self._storage_file(tensor))
        except (zipfile.BadZipFile, OSError, KeyError) as error:
            raise UserError(f"{name} cannot be read from {str(self.path)!r}: {error}.") from None
        elements = np.frombuffer(content, tensor.dtype)[tensor.offset :]
        strides = [step * tensor.dtype.itemsize for step in tensor.strides]
        return np.array(np.lib.stride_tricks.as_strided(elements, tensor.shape, strides))


def _state_dict(content):
    """The dict of tensors of a file's content, which may be under `model` or `state_dict`."""
    if not isinstance(content, dict):
        return {}
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            return content[key]
    return content


def _check_bounds(tensor, storage_bytes, name):
    """Raises ValueError for a tensor that exceeds its storage, as in a damaged or hostile file."""
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    valid = all(type(n) is int and n >= 0 for n in numbers)
    if len(tensor.shape) != len(tensor.strides) or not valid:
        raise ValueError(f"{name} has an invalid shape, offset or stride")
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((size - 1) * stride for size, stride in steps)
    if math.prod(tensor.shape) and (last + 1) * tensor.dtype.itemsize > storage_bytes:
        raise ValueError(f"{name} is longer than its storage")


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    if metadata:
        raise ValueError("a tensor is a negated or conjugated view")
    return TorchTensor(*storage, offset, tuple(size), tuple(stride))


class _Ignored:
    """Takes the place of training settings that some files contain; they are not used."""


class _TensorUnpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers and `TorchTensor`s, and refuses everything else."""

    def __init__(self, file, path):
        super().__init__(file)
        self._path = path

    def find_class(self, module, name):
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch", "Size"): tuple,
            ("argparse", "Namespace"): _Ignored,
        }
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if (module, name) not in known:
            raise UserError(
                f"{str(self._path)!r} contains more than tensors: its pickle calls "
                f"{module}.{name}, which is not executed. If you trust the file, save its weights "
                "as safetensors first."
            )
        return known[module, name]

    def persistent_load(self, pid):
        _, dtype, storage, *_ = pid
        return dtype, storage


@contextlib.contextmanager
def atomic_folder(folder):
    """Yields a temporary folder; its content is moved to `folder` at the end, removed on failure.

    Raises:
      UserError: when `folder` is not empty or cannot be written.
    """
    folder = Path(folder).absolute()
    try:
        is_new = not folder.exists()
        if not is_new and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"{str(folder)!r} exists and is not empty; name a new folder with --out."
            )
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
    except OSError as error:
        raise UserError(f"Cannot write into {str(folder)!r}: {error.strerror}.") from None
    try:
        yield partial
        for path in list(partial.iterdir()):
            path.rename(folder / path.name)
        partial.rmdir()
    except BaseException:
        shutil.rmtree(folder if is_new else partial, ignore_errors=True)
        raise


def write_shards(folder, tensors, *, report):
    """Writes tensors as model.safetensors, or as several shards with an index.

    Args:
      folder: an existing folder.
      tensors: iterable of (name, numpy array).
      report: called with the bytes of every tensor that is done.
    """
    shards = []
    shard_of = {}  # tensor name -> number of its shard
    current = {}
    current_bytes = total_bytes = 0

    def flush():
        path = folder / f"{len(shards)}.part"
        save_file(current, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes it readable by its owner only
        shard_of.update(dict.fromkeys(current, len(shards)))
        shards.append(path)
        current.clear()

    for name, array in tensors:
        if current and current_bytes + array.nbytes > MAX_SHARD_BYTES:
            flush()
            current_bytes = 0
        current[name] = array
        current_bytes += array.nbytes
        total_bytes += array.nbytes
        report(array.nbytes)
    flush()
    if len(shards) == 1:
        shards[0].rename(folder / "model.safetensors")
        return
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for path, name in zip(shards, names, strict=True):
        path.rename(folder / name)
    weight_map = {name: names[number] for name, number in sorted(shard_of.items())}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
