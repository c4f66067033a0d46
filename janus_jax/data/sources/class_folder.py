"""Folders of pictures named after what they show, as ImageNet is laid out: `n01440764/001.JPEG`."""

import json
from pathlib import Path

from janus_jax.data.files import PICTURES, files_at
from janus_jax.data.images import BadRecord
from janus_jax.errors import UserError


class ClassFolderSource:
    """Pictures with the name of their class as `prompt` and as `caption`."""

    def __init__(self, path, *, names=None):
        """`names` is a file of class names: a JSON map {folder: name}, or lines of `folder name`."""
        self._files, self._root = files_at(path, *PICTURES), Path(path).expanduser()
        self._names = None if names is None else _read_names(names)

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        file = Path(self._files[index])
        # Below a folder its own folders are the classes, whatever they hold; a pattern names pictures of a class.
        inside = self._root.is_dir() and file.parent != self._root
        folder = file.relative_to(self._root).parts[0] if inside else file.parent.name
        name = folder.replace("_", " ") if self._names is None else self._names.get(folder)
        if name is None:
            raise BadRecord("no name for its folder")
        return {"image": file.read_bytes(), "prompt": name, "caption": name}

    def locate(self, index):
        """The picture's path."""
        return self._files[index]


def _read_names(file):
    try:
        text = Path(file).read_text()
        if str(file).endswith(".json"):
            return dict(json.loads(text))
        return dict(line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise UserError(f"No class names can be read from {str(file)!r}: {error}.") from None
