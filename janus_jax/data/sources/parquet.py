"""Parquet files, as data sets of the Hugging Face hub lie on disk.

A Parquet file is read by row groups, a whole one for any of its rows: quick in order, slow in a global shuffle where
groups are large. `python -m janus_jax.prepare records` rewrites any source as ArrayRecord files, which have no groups.
"""

import collections
import threading

import pyarrow.parquet as pq
from absl import logging
from pyarrow import ArrowException

from janus_jax.data.files import Parts, files_at
from janus_jax.data.sources.json_records import as_conversation
from janus_jax.errors import UserError

LARGE = 8 * 2**20  # bytes of a row group from which on a word about it is due


class ParquetSource:
    """Rows of all files of a pattern or folder; pictures are bytes, or the hub's {bytes, path}."""

    def __init__(self, path, *, columns=None, cached_groups=8):
        """`columns` are those to read, all without it; `cached_groups` row groups stay in memory."""
        self._files = files_at(path, ".parquet")
        self._columns, self._held, self._lock = columns and list(columns), collections.OrderedDict(), threading.Lock()
        try:
            self._meta = [pq.read_metadata(file) for file in self._files]
        except (ArrowException, OSError) as error:
            raise UserError(f"{str(path)!r} is no Parquet file: {error}.") from None
        groups = [(f, g) for f, meta in enumerate(self._meta) for g in range(meta.num_row_groups)]
        meta = [self._meta[f].row_group(g) for f, g in groups]
        self._groups, self._parts, self._limit = groups, Parts([m.num_rows for m in meta]), cached_groups
        largest = max((m.total_byte_size for m in meta), default=0)
        if largest > LARGE and len(groups) > cached_groups:
            logging.warning(
                "%s is read in row groups of up to %d MiB, one for every record of a shuffle; "
                "`python -m janus_jax.prepare records` rewrites it for quick reading", path, largest // 2**20,
            )  # fmt: skip

    def __len__(self):
        return len(self._parts)

    def __getitem__(self, index):
        group, row = self._parts.find(index)
        (record,) = self._group(group).slice(row, 1).to_pylist()
        return as_conversation({name: _plain(value) for name, value in record.items()})

    def _group(self, group):
        with self._lock:
            if group not in self._held:
                file, number = self._groups[group]
                with pq.ParquetFile(self._files[file], metadata=self._meta[file], memory_map=True) as opened:
                    self._held[group] = opened.read_row_group(number, columns=self._columns)
            self._held.move_to_end(group)
            while len(self._held) > self._limit:
                self._held.popitem(last=False)
            return self._held[group]

    def locate(self, index):
        """File, row group and row in it."""
        group, row = self._parts.find(index)
        file, number = self._groups[group]
        return f"{self._files[file]}, row group {number}, row {row}"


def _plain(value):
    """The hub's {'bytes', 'path'} of a picture, or a list of them -> bytes."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["bytes"]
    return [_plain(v) for v in value] if isinstance(value, list) else value
