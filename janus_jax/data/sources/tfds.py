"""TensorFlow Datasets that are prepared on disk; TensorFlow itself is not needed."""

from pathlib import Path

import tensorflow_datasets as tfds

from janus_jax.errors import UserError


class TfdsSource:
    """A split of a prepared data set, its pictures left encoded."""

    def __init__(self, path, *, split="train"):
        if not (Path(path) / "dataset_info.json").is_file():
            raise UserError(f"No TensorFlow data set in {str(path)!r}: its dataset_info.json is missing.")
        builder = tfds.builder_from_directory(path)
        if split.split("[")[0] not in builder.info.splits:
            raise UserError(f"{str(path)!r} has no split {split!r}; known: {sorted(builder.info.splits)}.")
        pictures = {k: tfds.decode.SkipDecoding() for k, f in builder.info.features.items() if _is_image(f)}
        try:
            self._records, self._split = builder.as_data_source(split, decoders=pictures), split
        except NotImplementedError as error:
            raise UserError(
                f"{str(path)!r} is kept in files that cannot be read in any order ({error}); prepare it with "
                "`file_format='array_record'`."
            ) from None

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return dict(self._records[index])

    def locate(self, index):
        """Split and number."""
        return f"{self._split}, record {index}"


def _is_image(feature):
    return isinstance(feature, tfds.features.Image)
