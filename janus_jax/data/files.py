"""Finding files, numbering records over several of them, folders, and small JSON files for people."""

import glob
import json
import os
from pathlib import Path

import numpy as np

from janus_jax.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def files_at(path, *endings):
    """Files of a pattern, or of a folder and its folders, also linked ones, that end in one of `endings`; sorted.

    A pattern whose files all end otherwise gives them all.

    Raises:
      UserError: where there are none.
    """
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        found = [os.path.join(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names]
        found = [file for file in found if file.lower().endswith(endings)]
    else:
        found = [file for file in glob.glob(path, recursive=True) if os.path.isfile(file)]
        found = [file for file in found if file.lower().endswith(endings)] or found
    if not found:
        hint = " Mount a bucket as a folder first." if "://" in path else " Braces are not expanded." if "{" in path else ""
        raise UserError(f"No file ({' or '.join(endings)}) lies at {path!r}.{hint}")
    return sorted(found)


class Parts:
    """Records that lie in several parts, numbered through."""

    def __init__(self, counts):
        """`counts` are the records of each part."""
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self):
        return int(self._ends[-1]) if len(self._ends) else 0

    def find(self, index):
        """Part, and the record's number in it."""
        part = int(np.searchsorted(self._ends, index, "right"))
        return part, int(index - (self._ends[part - 1] if part else 0))


def make_folder(path):
    """Makes a folder where it is missing.

    Raises:
      UserError: where that cannot be, a file of that name among the reasons.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be made a folder: {error.strerror}.") from None


def write_json(path, value):
    """Writes a small JSON file, readable by people, whole or not at all."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
