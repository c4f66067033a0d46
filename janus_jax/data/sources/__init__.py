"""Records on disk, by index; a page for each kind of file, and `KINDS` names them all.

A kind is a class: `Kind(path, **options)` opens the data, `len(kind)` and `kind[index]` read them, and
`kind.locate(index)` says where a record lies, for reports. Fields are renamed by a map in config, {our name: its name},
so that data need no conversion. A new kind is a page here and a line below.
"""

import json
from pathlib import Path

from janus_jax.data.images import Picture, check_options
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
    """A named source: records with the field names that `tasks` knows."""

    def __init__(self, name, *, kind, path, fields=None, exif="ignore", alpha="drop", **options):
        """Opens it.

        Args:
          name: its name in config, for reports.
          kind: a key of KINDS.
          path: file pattern or folder. A folder that `prepare` filled from a source is read as such, whatever
            the kind and the fields of that source.
          fields: {our name: name in the record, 'outer.inner' inside a nested one, or '=text' for a constant}; None
            keeps the record's own names.
          exif, alpha: what is done to pictures beyond the released processor, see `image_ops.Picture`.
          **options: of the kind, `split` for tfds.

        Raises:
          UserError: for an unknown kind, and for missing or empty data, with the source's name and the way out.
        """
        if kind not in KINDS:
            raise UserError(f"Source {name!r}: kind {kind!r} is unknown; known: {sorted(KINDS)}.")
        try:
            about = _about(path)
            if about:
                kind, fields, options = "array_record", None, {}
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
        self.name, self.path, self.fields, self.pictures = name, path, fields, dict(exif=exif, alpha=alpha)
        self.cache = about if "fingerprint" in about else {}

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        """The record, its fields renamed."""
        record = self._records[index]
        if self.fields is not None:
            record = {ours: _pick(record, theirs) for ours, theirs in self.fields.items()}
        return record if self.pictures == dict(exif="ignore", alpha="drop") else self._with_options(record)

    def locate(self, index):
        """Where a record lies, in words."""
        return self._records.locate(index)

    def _with_options(self, record):
        wrap = lambda encoded: encoded if encoded is None else Picture(encoded, **self.pictures)
        changed = {"image": wrap(record["image"])} if "image" in record else {}
        changed |= {"images": [wrap(i) for i in record["images"]]} if record.get("images") is not None else {}
        return record | changed


def _about(path):
    """about.json of a folder that `prepare` filled from a source, {} of anything else."""
    file = Path(path) / "about.json"
    about = json.loads(file.read_text()) if file.is_file() else {}
    if not isinstance(about, dict) or "files" not in about:
        return {}
    done = len(list(file.parent.glob("*-of-*.array_record")))
    if done < about["files"]:
        raise UserError(f"{str(path)!r} has {done} of its {about['files']} files; give the command that makes it once more.")
    return about


def _pick(record, name):
    """A field by its name, a constant, or a field of a nested record."""
    if name.startswith("="):
        return name[1:]
    if name in record or "." not in name:
        return record.get(name)
    outer, inner = name.split(".", 1)
    return _pick(record[outer], inner) if isinstance(record.get(outer), dict) else None
