"""Records on disk, by index: TensorFlow Datasets and ArrayRecord files, read through Grain.

A source is opened by its `kind`; fields are renamed by a map in its config, {our name: its name}, so that data need
no conversion. ArrayRecord files hold msgpack maps.
"""

import glob
import json
from pathlib import Path

import grain
import msgpack
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from janus_jax.data.image_ops import BadRecord, Picture, check_options
from janus_jax.errors import UserError


class ArrayRecordSource:
    """All files of a glob pattern, one msgpack map a record."""

    def __init__(self, path):
        pattern = Path(path) / "*.array_record" if Path(path).is_dir() else path
        files = sorted(glob.glob(str(pattern)))
        if not files:
            raise UserError(f"No ArrayRecord file matches {str(pattern)!r}.")
        try:
            self._records = grain.sources.ArrayRecordDataSource(files)
            len(self._records)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{str(pattern)!r} is no ArrayRecord file: {error}.") from None

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        try:
            return msgpack.unpackb(self._records[index])
        except (ValueError, msgpack.UnpackException):
            raise BadRecord("unreadable record") from None


class TfdsSource:
    """A split of a prepared TensorFlow data set, its pictures left encoded."""

    def __init__(self, path, *, split="train"):
        if not (Path(path) / "dataset_info.json").is_file():
            raise UserError(f"No TensorFlow data set in {str(path)!r}: its dataset_info.json is missing.")
        builder = tfds.builder_from_directory(path)
        if split.split("[")[0] not in builder.info.splits:
            raise UserError(f"{str(path)!r} has no split {split!r}; known: {sorted(builder.info.splits)}.")
        pictures = {k: tfds.decode.SkipDecoding() for k, f in builder.info.features.items() if _is_image(f)}
        self._records = builder.as_data_source(split, decoders=pictures)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return dict(self._records[index])


def _is_image(feature):
    return isinstance(feature, tfds.features.Image)


KINDS = {"array_record": ArrayRecordSource, "tfds": TfdsSource}


class Source:
    """A named source: records with the field names that `tasks` knows."""

    def __init__(self, name, *, kind, path, fields=None, exif="ignore", alpha="drop", **options):
        """Opens it.

        Args:
          name: its name in config, for reports.
          kind: a key of KINDS.
          path: file pattern or folder.
          fields: {our name: name in the record, or '=text' for a constant}; None keeps the record's own names.
          exif, alpha: what is done to pictures beyond the released processor, see `image_ops.Picture`.
          **options: of the kind, `split` for tfds.

        Raises:
          UserError: for an unknown kind, and for missing or empty data, with the source's name and the way out.
        """
        if kind not in KINDS:
            raise UserError(f"Source {name!r}: kind {kind!r} is unknown; known: {sorted(KINDS)}.")
        try:
            self._records = KINDS[kind](path, **options)
        except (UserError, TypeError) as error:  # TypeError: an option that the kind does not have
            raise UserError(
                f"Source {name!r}: {error} Name your data with --config.data.sources.{name}.path=..., or make a "
                "built-in set with `python -m janus_jax.prepare shapes --out=data/shapes`."
            ) from None
        if not len(self._records):
            raise UserError(f"Source {name!r}: {str(path)!r} holds no records.")
        try:
            check_options(exif=exif, alpha=alpha)
        except ValueError as error:
            raise UserError(f"Source {name!r}: {error}") from None
        self.name, self.fields = name, fields
        self._picture = {} if (exif, alpha) == ("ignore", "drop") else dict(exif=exif, alpha=alpha)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        """The record, its fields renamed."""
        record = self._records[index]
        if self.fields is not None:
            pick = lambda name: name[1:] if name.startswith("=") else record.get(name)
            record = {ours: pick(theirs) for ours, theirs in self.fields.items()}
        return self._with_options(record) if self._picture else record

    def _with_options(self, record):
        wrap = lambda encoded: encoded if encoded is None else Picture(encoded, **self._picture)
        changed = {"image": wrap(record["image"])} if "image" in record else {}
        changed |= {"images": [wrap(i) for i in record["images"]]} if record.get("images") is not None else {}
        return record | changed


def write_array_record(path, records):
    """Writes records, dicts of strings, numbers and bytes, as one ArrayRecord file for random access."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(msgpack.packb(record))
    writer.close()


def write_json(path, value):
    """Writes a small JSON file, readable by people."""
    Path(path).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
