"""Parquet files, the usual format of data sets on the Hugging Face hub.

Reading one row reads its whole row group: fast in order, slow in a global shuffle if groups are
large. `python -m janus_jax.prepare records` rewrites any source as ArrayRecord files, which have no
groups.
"""

import collections
import threading

import pyarrow.parquet as pq
from absl import logging
from pyarrow import ArrowException

from janus_jax.data.files import Parts, files_at
from janus_jax.data.sources.json_records import as_conversation
from janus_jax.errors import UserError

LARGE = 8 * 2**20  # bytes; larger row groups are worth a warning


class ParquetSource:
    """Rows of all files of a pattern or folder; images are bytes, or the hub's {bytes, path}."""

    def __init__(self, path, *, columns=None, cached_groups=8):
        """Reads the files' metadata.

        Args:
          path: file, folder or pattern.
          columns: names of the columns to read; by default all.
          cached_groups: number of row groups that stay in memory.
        """
        self._files = files_at(path, ".parquet")
        self._columns = columns and list(columns)
        self._cache = collections.OrderedDict()  # {group: table}, the least recently used first
        self._cached_groups = cached_groups
        self._lock = threading.Lock()
        try:
            self._meta = [pq.read_metadata(file) for file in self._files]
        except (ArrowException, OSError) as error:
            raise UserError(f"{str(path)!r} is no Parquet file: {error}.") from None
        self._groups = [
            (f, g) for f, meta in enumerate(self._meta) for g in range(meta.num_row_groups)
        ]
        groups = [self._meta[f].row_group(g) for f, g in self._groups]
        self._parts = Parts([group.num_rows for group in groups])
        largest = max((group.total_byte_size for group in groups), default=0)
        if largest > LARGE and len(groups) > cached_groups:
            logging.warning(
                "%s has row groups of up to %d MiB; a shuffle reads a whole one for every record; "
                "rewrite it for fast reading with `python -m janus_jax.prepare records`",
                path,
                largest // 2**20,
            )

    def __len__(self):
        return len(self._parts)

    def __getitem__(self, index):
        group, row = self._parts.find(index)
        (record,) = self._group(group).slice(row, 1).to_pylist()
        return as_conversation({name: _plain(value) for name, value in record.items()})

    def _group(self, group):
        with self._lock:
            if group not in self._cache:
                number, row_group = self._groups[group]
                name, meta = self._files[number], self._meta[number]
                with pq.ParquetFile(name, metadata=meta, memory_map=True) as file:
                    self._cache[group] = file.read_row_group(row_group, columns=self._columns)
            self._cache.move_to_end(group)
            while len(self._cache) > self._cached_groups:
                self._cache.popitem(last=False)
            return self._cache[group]

    def locate(self, index):
        """File, row group, and row in the group."""
        group, row = self._parts.find(index)
        file, number = self._groups[group]
        return f"{self._files[file]}, row group {number}, row {row}"


def _plain(value):
    """The hub's {'bytes', 'path'} of an image, or a list of them -> bytes."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["bytes"]
    return [_plain(v) for v in value] if isinstance(value, list) else value
