"""Folders of images named by their class, as in ImageNet: `n01440764/001.JPEG`."""

import json
from pathlib import Path

from janus_jax.data.files import IMAGE_ENDINGS, files_at
from janus_jax.data.images import BadRecord
from janus_jax.errors import UserError


class ClassFolderSource:
    """Images with the name of their class as `prompt` and as `caption`."""

    def __init__(self, path, *, names=None):
        """Lists the images.

        Args:
          path: folder whose subfolders are the classes, or a pattern of image files.
          names: file of class names, a JSON map {folder: name} or lines of `folder name`; by
            default the folders' names.
        """
        self._files = files_at(path, *IMAGE_ENDINGS)
        self._root = Path(path).expanduser()
        self._names = None if names is None else _read_names(names)

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        file = Path(self._files[index])
        # The classes are the first level of subfolders; with a pattern, the folder of each image.
        inside = self._root.is_dir() and file.parent != self._root
        folder = file.relative_to(self._root).parts[0] if inside else file.parent.name
        name = folder.replace("_", " ") if self._names is None else self._names.get(folder)
        if name is None:
            raise BadRecord("no name for its folder")
        return {"image": file.read_bytes(), "prompt": name, "caption": name}

    def locate(self, index):
        """The image's path."""
        return self._files[index]


def _read_names(file):
    try:
        text = Path(file).read_text()
        if str(file).endswith(".json"):
            return dict(json.loads(text))
        return dict(line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise UserError(f"Class names cannot be read from {str(file)!r}: {error}.") from None
