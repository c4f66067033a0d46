"""JSON and JSONL files, pictures beside them in a folder: LLaVA's form, or any other through the map of fields."""

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
    """Records of `.jsonl` files, one a line, and of `.json` files, a list each.

    LLaVA's `conversations` become our `conversation`. Strings in the fields `pictures` are names of files in the folder
    `images`, or beside their JSON file without it, and are read.
    """

    def __init__(self, path, *, images=None, pictures=("image", "images")):
        self._files = files_at(path, ".json", ".jsonl")
        if images is not None and not Path(images).expanduser().is_dir():
            raise UserError(f"No folder of pictures at {str(images)!r}.")
        self._roots = [Path(f).parent if images is None else Path(images).expanduser() for f in self._files]
        self._pictures = pictures
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
        for name in self._pictures:
            if isinstance(record.get(name), (str, list)):
                names = record[name]
                read = lambda n: None if n is None else _read(self._roots[part], n)
                record = record | {name: read(names) if isinstance(names, str) else [read(n) for n in names]}
        return as_conversation(record)

    def locate(self, index):
        """File and line, or place in the list; both from 1."""
        part, number = self._parts.find(index)
        reader = self._readers[part]
        lines = isinstance(reader, _Lines)
        return f"{self._files[part]}, {f'line {reader.numbers[number] + 1}' if lines else f'record {number + 1}'}"


def _read(root, name):
    if not isinstance(name, str):
        raise BadRecord("picture without a file name")
    if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
        raise BadRecord("picture outside the folder of pictures")
    try:
        return (root / name).read_bytes()
    except OSError:
        raise BadRecord("missing picture file") from None


class _Lines:
    """Lines of a file that are not blank; only their numbers and places are held."""

    def __init__(self, file):
        self._file = file
        with open(file, "rb") as lines:
            lengths = np.fromiter((len(line) if line.strip() else -len(line) for line in lines), np.int64)
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
            raise UserError(f"{file!r} is no JSON: {error}.") from None
        if not isinstance(records, list):
            raise UserError(f"{file!r} holds no list of records.")
        super().__init__(records)


def as_conversation(record):
    """LLaVA's `conversations` with <image> marks -> our `conversation` and `images`; other records stay as they are."""
    if not isinstance(record.get("conversations"), list) or "conversation" in record:
        return record
    turns = [
        {"role": ROLES.get(turn["from"], turn["from"]), "content": turn["value"].replace("<image>", IMAGE)}
        for turn in record["conversations"]
    ]
    images = record.get("images", record.get("image"))
    images = [] if images is None else images if isinstance(images, list) else [images]
    return record | {"conversation": turns, "images": images}
