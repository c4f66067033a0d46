"""Finding files, numbering records over several of them, and small JSON files for people."""

import glob
import json
from pathlib import Path

import numpy as np

from janus_jax.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def files_at(path, *endings):
    """Files of a pattern, or those of a folder and its folders that end in one of `endings`; sorted.

    Raises:
      UserError: where there are none.
    """
    if Path(path).is_dir():
        found = [str(p) for p in Path(path).rglob("*") if p.name.lower().endswith(endings) and p.is_file()]
    else:
        found = [p for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
    if not found:
        raise UserError(f"No file ({' or '.join(endings)}) lies at {str(path)!r}.")
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


def write_json(path, value):
    """Writes a small JSON file, readable by people."""
    Path(path).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
