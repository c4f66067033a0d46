"""WebDataset: tar files whose neighbours `name.jpg`, `name.txt`, `name.json` make one record.

The headers are read once, when a source is opened; after that any record is read by its place, in any order.
"""

import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import rich.progress
from absl import logging

from janus_jax.data.files import PICTURES, Parts, files_at
from janus_jax.data.images import BadRecord
from janus_jax.data.sources.json_records import as_conversation
from janus_jax.errors import UserError

TEXTS = ("txt", "text", "caption", "prompt")


class WebDatasetSource:
    """The records of all tar files of a pattern or folder.

    A record has a field for every file ending (`jpg`, `txt`, `json`), the fields inside its JSON, `image` for its
    picture, and `caption` and `prompt` for its text, where it has no others of that name.
    """

    def __init__(self, path):
        self._files = files_at(path, ".tar")
        with ThreadPoolExecutor(8) as pool:
            read = rich.progress.track(
                pool.map(_index, self._files), total=len(self._files), description="tar headers", transient=True,
                disable=len(self._files) < 10,
            )  # fmt: skip
            self._shards = list(read)
        self._parts = Parts([len(shard.first) - 1 for shard in self._shards])

    def __len__(self):
        return len(self._parts)

    def __getitem__(self, index):
        part, number = self._parts.find(index)
        shard = self._shards[part]
        record = {}
        with open(self._files[part], "rb") as file:  # thousands of tar files cannot all stay open
            for member in range(shard.first[number], shard.first[number + 1]):
                place, size = shard.place[member].tolist()
                file.seek(place)
                record[shard.endings[shard.ending[member]]] = file.read(size)
        return _finish(record)

    def locate(self, index):
        """Tar file and number in it."""
        part, number = self._parts.find(index)
        return f"{self._files[part]}, record {number}"


class _Shard:
    """Where the members of one tar file lie: place int64[n, 2], ending int16[n], first int64[records + 1]."""

    def __init__(self, members):
        self.endings = sorted({ending for _, ending, _, _ in members})
        self.place = np.array([(begin, size) for _, _, begin, size in members], np.int64).reshape(-1, 2)
        self.ending = np.array([self.endings.index(ending) for _, ending, _, _ in members], np.int16)
        new = [i for i, member in enumerate(members) if not i or members[i - 1][0] != member[0]]
        self.first = np.array([*new, len(members)], np.int64)


def _index(file):
    members, gaps, end, size = [], [], 0, Path(file).stat().st_size
    try:
        # With ignore_zeros a damaged header is stepped over, and joined tar files are read to the end.
        with tarfile.open(file, "r:", ignore_zeros=True) as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if member.isfile() and stem:
                    members.append((f"{folder}/{stem}", ending.lower(), member.offset_data, member.size))
                gaps.append((end, member.offset))
                end, tar.members = tar.offset, []  # which would be kept
    except tarfile.ReadError as error:
        logging.warning("%s ends in the middle of a record: %s", file, error)
    whole = [member for member in members if member[2] + member[3] <= size]
    if size and not whole:
        raise UserError(f"{file!r} is no plain tar file.")
    with open(file, "rb") as raw:
        for begin, after in gaps:
            raw.seek(begin)
            if begin < after and raw.read(after - begin).strip(b"\0"):
                logging.warning("%s is damaged: what lies in bytes %d to %d is lost", file, begin, after)
    return _Shard(whole)


def _finish(record):
    """Bytes by ending -> the record that tasks look into."""
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
    pictures = [ending for ending in record if f".{ending}" in PICTURES]
    texts = [ending for ending in TEXTS if ending in record]
    for name, found in (("image", pictures), ("caption", texts), ("prompt", texts)):
        if found:
            fields[name] = record[found[0]] if name == "image" else fields.get(name, record[found[0]])
    if pictures and "text" in record:  # a caption, not a document
        del fields["text"]
    return as_conversation(fields)
