"""ArrayRecord files of msgpack maps: what `prepare` writes, and the fastest kind to read."""

from pathlib import Path

import grain
import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from janus_jax.data.files import files_at
from janus_jax.data.images import BadRecord
from janus_jax.errors import UserError


class ArrayRecordSource:
    """All files of a pattern or folder; a record is a msgpack map."""

    def __init__(self, path):
        files = files_at(path, ".array_record")
        try:
            self._records = grain.sources.ArrayRecordDataSource(files)
            len(self._records)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{str(path)!r} is no ArrayRecord file: {error}.") from None

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        try:
            return msgpack.unpackb(self._records[index])
        except (ValueError, msgpack.UnpackException):
            raise BadRecord("unreadable record") from None

    def locate(self, index):
        """The record's number over all files."""
        return f"record {index}"


def write_array_record(path, records):
    """Writes records, dicts of strings, numbers and bytes, as a file for random access."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(msgpack.packb(record, default=_plain))
    writer.close()


def _plain(value):
    """numpy scalars and arrays -> Python numbers and lists; other types -> text."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)
