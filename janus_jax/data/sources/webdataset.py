"""WebDataset: tar files where consecutive `name.jpg`, `name.txt`, `name.json` make one record.

The headers are read once, when a source is opened; records are then read by offset, in any order.
"""

import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import rich.progress
from absl import logging

from janus_jax.data.files import IMAGE_ENDINGS, Parts, files_at
from janus_jax.data.images import BadRecord
from janus_jax.data.sources.json_records import as_conversation
from janus_jax.errors import UserError

TEXTS = ("txt", "text", "caption", "prompt")


class WebDatasetSource:
    """The records of all tar files of a pattern or folder.

    A record has a field for every file ending (`jpg`, `txt`, `json`), the fields of its JSON,
    `image`, and its text as `caption` and `prompt` unless the JSON has fields of these names.
    """

    def __init__(self, path):
        self._files = files_at(path, ".tar")
        with ThreadPoolExecutor(8) as pool:
            shards = rich.progress.track(
                pool.map(_index, self._files),
                total=len(self._files),
                description="tar headers",
                transient=True,
                disable=len(self._files) < 10,
            )
            self._shards = list(shards)
        self._parts = Parts([len(shard.first) - 1 for shard in self._shards])

    def __len__(self):
        return len(self._parts)

    def __getitem__(self, index):
        part, number = self._parts.find(index)
        shard = self._shards[part]
        record = {}
        with open(self._files[part], "rb") as file:  # thousands of tar files cannot all stay open
            for member in range(shard.first[number], shard.first[number + 1]):
                offset, size = shard.place[member].tolist()
                file.seek(offset)
                record[shard.endings[shard.ending[member]]] = file.read(size)
        return _finish(record)

    def locate(self, index):
        """Tar file, and the record's number in it."""
        part, number = self._parts.find(index)
        return f"{self._files[part]}, record {number}"


class _Shard:
    """Index of one tar file.

    Attributes:
      endings: the file endings that occur.
      place: int64[n, 2], offset and size of each member in bytes.
      ending: int16[n], index into `endings`.
      first: int64[records + 1], first member of each record.
    """

    def __init__(self, members):
        self.endings = sorted({ending for _, ending, _, _ in members})
        self.place = np.array([(begin, size) for _, _, begin, size in members], np.int64).reshape(
            -1, 2
        )
        numbers = [self.endings.index(ending) for _, ending, _, _ in members]
        self.ending = np.array(numbers, np.int16)
        names = [name for name, _, _, _ in members]
        first = [i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
        self.first = np.array([*first, len(members)], np.int64)


def _index(file):
    members = []  # (name without ending, ending, offset, size)
    gaps = []  # bytes between a member and the next
    end = 0
    size = Path(file).stat().st_size
    try:
        # With ignore_zeros, damaged headers are skipped and joined tar files are read to the end.
        with tarfile.open(file, "r:", ignore_zeros=True) as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if member.isfile() and stem:
                    name = f"{folder}/{stem}"
                    members.append((name, ending.lower(), member.offset_data, member.size))
                gaps.append((end, member.offset))
                end = tar.offset
                tar.members = []  # otherwise all headers would stay in memory
    except tarfile.ReadError as error:
        logging.warning("%s ends in the middle of a record: %s", file, error)
    whole = [member for member in members if member[2] + member[3] <= size]
    if size and not whole:
        raise UserError(f"{file!r} is no plain tar file.")
    with open(file, "rb") as raw:
        for begin, after in gaps:
            raw.seek(begin)
            if begin < after and raw.read(after - begin).strip(b"\0"):
                logging.warning("%s is damaged: bytes %d to %d cannot be read", file, begin, after)
    return _Shard(whole)


def _finish(record):
    """{ending: bytes} -> a record with the fields of its JSON, `image`, `caption` and `prompt`."""
    fields = {}
    for ending, value in record.items():
        if ending.rpartition(".")[2] == "json":
            try:
                fields[ending] = json.loads(value)
            except ValueError:
                raise BadRecord("unreadable JSON") from None
            if isinstance(fields[ending], dict):
                fields = fields[ending] | fields
        else:
            fields[ending] = value
    images = [value for ending, value in record.items() if f".{ending}" in IMAGE_ENDINGS]
    texts = [record[ending] for ending in TEXTS if ending in record]
    if images:
        fields["image"] = images[0]
    if texts:
        fields.setdefault("caption", texts[0])
        fields.setdefault("prompt", texts[0])
    if images and "text" in record:  # a caption, not a document
        del fields["text"]
    return as_conversation(fields)
