"""JSON and JSONL files with images in a folder: LLaVA's format, or any other by `fields`."""

import json
import os
from pathlib import Path

import numpy as np

from janus_jax.data.chat import IMAGE
from janus_jax.data.files import Parts, files_at
from janus_jax.data.images import BadRecord
from janus_jax.errors import UserError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class JsonSource:
    """Records of `.jsonl` files, one per line, and of `.json` files, a list each.

    LLaVA's `conversations` become our `conversation`.
    """

    def __init__(self, path, *, images=None, pictures=("image", "images")):
        """Indexes the files.

        Args:
          path: file, folder or pattern.
          images: folder of the image files; by default the folder of each JSON file.
          pictures: fields whose strings are names of image files; the files are read.
        """
        self._files = files_at(path, ".json", ".jsonl")
        if images is not None and not Path(images).expanduser().is_dir():
            raise UserError(f"There is no folder of images at {str(images)!r}.")
        if images is None:
            self._roots = [Path(file).parent for file in self._files]
        else:
            self._roots = [Path(images).expanduser()] * len(self._files)
        self._image_fields = pictures
        self._readers = [_Lines(f) if f.endswith(".jsonl") else _List(f) for f in self._files]
        self._parts = Parts([len(reader) for reader in self._readers])

    def __len__(self):
        return len(self._parts)

    def __getitem__(self, index):
        part, number = self._parts.find(index)
        try:
            record = self._readers[part][number]
        except ValueError:
            raise BadRecord("unreadable JSON") from None
        if not isinstance(record, dict):
            raise BadRecord("record is no JSON object")
        root = self._roots[part]
        for field in self._image_fields:
            value = record.get(field)
            if isinstance(value, str):
                record = record | {field: _read(root, value)}
            elif isinstance(value, list):
                record = record | {
                    field: [name if name is None else _read(root, name) for name in value]
                }
        return as_conversation(record)

    def locate(self, index):
        """File, and the line or the number in the list; both count from 1."""
        part, number = self._parts.find(index)
        reader = self._readers[part]
        if isinstance(reader, _Lines):
            return f"{self._files[part]}, line {reader.numbers[number] + 1}"
        return f"{self._files[part]}, record {number + 1}"


def _read(root, name):
    if not isinstance(name, str):
        raise BadRecord("image without a file name")
    if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
        raise BadRecord("image outside the folder of images")
    try:
        return (root / name).read_bytes()
    except OSError:
        raise BadRecord("missing image file") from None


class _Lines:
    """The lines of a file that are not blank; only their numbers and byte offsets are in memory."""

    def __init__(self, file):
        self._file = file
        with open(file, "rb") as lines:
            # Blank lines count negatively.
            signed = (len(line) if line.strip() else -len(line) for line in lines)
            lengths = np.fromiter(signed, np.int64)
        self.numbers = np.flatnonzero(lengths > 0)
        self._ends = np.cumsum(np.abs(lengths))

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, number):
        line = self.numbers[number]
        begin = int(self._ends[line - 1]) if line else 0
        with open(self._file, "rb") as file:
            file.seek(begin)
            return json.loads(file.read(int(self._ends[line]) - begin).decode("utf-8-sig"))


class _List(list):
    """A whole JSON list."""

    def __init__(self, file):
        try:
            records = json.loads(Path(file).read_text("utf-8-sig"))
        except ValueError as error:
            raise UserError(f"{file!r} is no valid JSON: {error}.") from None
        if not isinstance(records, list):
            raise UserError(f"{file!r} is no list of records.")
        super().__init__(records)


def as_conversation(record):
    """LLaVA's `conversations` -> our `conversation` and `images`; other records stay unchanged."""
    if not isinstance(record.get("conversations"), list) or "conversation" in record:
        return record
    turns = [
        {
            "role": ROLES.get(turn["from"], turn["from"]),
            "content": turn["value"].replace("<image>", IMAGE),
        }
        for turn in record["conversations"]
    ]
    images = record.get("images", record.get("image"))
    if images is None:
        images = []
    elif not isinstance(images, list):
        images = [images]
    return record | {"conversation": turns, "images": images}
