"""Listing files, numbering records across several of them, folders, and small JSON files."""

import glob
import json
import os
from pathlib import Path

import numpy as np

from janus_jax.errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def files_at(path, *endings):
    """Files that match a pattern or are anywhere in a folder and end in one of `endings`; sorted.

    Linked folders are followed. A pattern that matches only files with other endings gives them
    all.

    Raises:
      UserError: if there are none.
    """
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        folders = os.walk(path, followlinks=True)
        files = [os.path.join(folder, name) for folder, _, names in folders for name in names]
        files = [file for file in files if file.lower().endswith(endings)]
    else:
        matches = [file for file in glob.glob(path, recursive=True) if os.path.isfile(file)]
        files = [file for file in matches if file.lower().endswith(endings)] or matches
    if not files:
        hint = ""
        if "://" in path:
            hint = " Mount the bucket as a folder first."
        elif "{" in path:
            hint = " Braces are not expanded."
        raise UserError(f"No file ({' or '.join(endings)}) found at {path!r}.{hint}")
    return sorted(files)


class Parts:
    """Numbers the records of several parts consecutively."""

    def __init__(self, counts):
        """`counts` are the numbers of records of the parts."""
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self):
        return int(self._ends[-1]) if len(self._ends) else 0

    def find(self, index):
        """The part that a record is in, and its index there."""
        part = int(np.searchsorted(self._ends, index, "right"))
        return part, int(index - (self._ends[part - 1] if part else 0))


def make_folder(path):
    """Makes a folder if it does not exist.

    Raises:
      UserError: if that fails, for example because a file has this name.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {str(path)!r}: {error.strerror}.") from None


def write_json(path, value):
    """Writes a small, indented JSON file atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, text.encode())


def write_whole(path, content):
    """Writes bytes to another name, then renames it, so that `path` is never incomplete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
