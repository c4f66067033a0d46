"""Records on disk, read by index; one module per kind of file, all of them listed in `KINDS`.

A kind is a class: `Kind(path, **options)` opens the data, `len(kind)` and `kind[index]` read
records, and `kind.locate(index)` names a record's file and position for reports. Fields are renamed
by a map in the config, {our name: name in the record}, so that data need no conversion. A new kind
is a module here and a line in `KINDS`.

A folder that `prepare` made (a copy or a cache of a source) is recognised by its about.json and
read as ArrayRecord files with our field names, whatever the config says of the original data.
"""

import json
from pathlib import Path

from absl import logging

from janus_jax.data.images import EncodedImage, check_options
from janus_jax.data.sources.array_record import ArrayRecordSource
from janus_jax.data.sources.captioned_folder import CaptionedFolderSource
from janus_jax.data.sources.class_folder import ClassFolderSource
from janus_jax.data.sources.json_records import JsonSource
from janus_jax.data.sources.parquet import ParquetSource
from janus_jax.data.sources.tfds import TfdsSource
from janus_jax.data.sources.webdataset import WebDatasetSource
from janus_jax.errors import UserError

KINDS = {
    "array_record": ArrayRecordSource,
    "captioned_folder": CaptionedFolderSource,
    "class_folder": ClassFolderSource,
    "json": JsonSource,
    "parquet": ParquetSource,
    "tfds": TfdsSource,
    "webdataset": WebDatasetSource,
}


class Source:
    """A named source: records with the field names that `data/examples.py` reads."""

    def __init__(self, name, *, kind, path, fields=None, exif="ignore", alpha="drop", **options):
        """Opens the data.

        Args:
          name: its name in config, for reports.
          kind: a key of KINDS.
          path: file pattern or folder. A folder that `prepare` made from a source is recognised by
            its about.json; `kind`, `fields` and the kind's options are then ignored, so that only
            the path of a source must change.
          fields: {our name: name in the record, 'outer.inner' for a nested field, or '=text' for a
            constant}; None means that the record uses our names.
          exif, alpha: options of images, see `images.EncodedImage`.
          **options: of the kind, such as `split` of tfds.

        Raises:
          UserError: for an unknown kind, missing or empty data, and unknown options.
        """
        if kind not in KINDS:
            raise UserError(f"Source {name!r}: kind {kind!r} is unknown; known: {sorted(KINDS)}.")
        try:
            about = _read_about(path)
            if about:
                # A copy has our field names, but the config may still describe the original.
                if kind != "array_record" or fields is not None or options:
                    logging.info(
                        "Source %r: %r was made by `prepare`; kind, fields and options of the "
                        "original data are not applied to it",
                        name,
                        str(path),
                    )
                kind, fields, options = "array_record", None, {}
            self._records = KINDS[kind](path, **options)
        except (UserError, TypeError) as error:  # TypeError: an option that the kind does not have
            raise UserError(
                f"Source {name!r}: {error} Set the path of your data with "
                f"--config.data.sources.{name}.path=..., or make a built-in data set with "
                "`python -m janus_jax.prepare shapes --out=data/shapes`."
            ) from None
        if not len(self._records):
            raise UserError(f"Source {name!r}: {str(path)!r} holds no records.")
        try:
            check_options(exif=exif, alpha=alpha)
        except ValueError as error:
            raise UserError(f"Source {name!r}: {error}") from None
        self.name = name
        self.path = path
        self.fields = fields
        self.image_options = {"exif": exif, "alpha": alpha}
        self.cache = about if "fingerprint" in about else {}

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        """The record with its fields renamed."""
        record = self._records[index]
        if self.fields is not None:
            record = {ours: _pick(record, theirs) for ours, theirs in self.fields.items()}
        if self.image_options == {"exif": "ignore", "alpha": "drop"}:
            return record
        return self._with_options(record)

    def locate(self, index):
        """File and position of a record, as text."""
        return self._records.locate(index)

    def _with_options(self, record):
        """The record with an EncodedImage for every image."""

        def wrap(encoded):
            return encoded if encoded is None else EncodedImage(encoded, **self.image_options)

        record = dict(record)
        if "image" in record:
            record["image"] = wrap(record["image"])
        if record.get("images") is not None:
            record["images"] = [wrap(encoded) for encoded in record["images"]]
        return record


def _read_about(path):
    """about.json of a folder that `prepare` made from a source; {} for any other path."""
    file = Path(path) / "about.json"
    about = json.loads(file.read_text()) if file.is_file() else {}
    if not isinstance(about, dict) or "files" not in about:
        return {}
    done = len(list(file.parent.glob("*-of-*.array_record")))
    if done < about["files"]:
        raise UserError(
            f"{str(path)!r} has {done} of its {about['files']} files; run the command that made it "
            "again."
        )
    return about


def _pick(record, name):
    """A field, a field of a nested record, or a constant; None if it is missing."""
    if name.startswith("="):
        return name[1:]
    if name in record or "." not in name:
        return record.get(name)
    outer, inner = name.split(".", 1)
    return _pick(record[outer], inner) if isinstance(record.get(outer), dict) else None
