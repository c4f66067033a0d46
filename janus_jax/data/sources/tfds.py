"""TensorFlow Datasets that are prepared on disk; TensorFlow itself is not needed."""

from pathlib import Path

import tensorflow_datasets as tfds

from janus_jax.errors import UserError


class TfdsSource:
    """A split of a prepared data set, with encoded images."""

    def __init__(self, path, *, split="train"):
        if not (Path(path) / "dataset_info.json").is_file():
            raise UserError(
                f"No TensorFlow data set in {str(path)!r}: its dataset_info.json is missing."
            )
        builder = tfds.builder_from_directory(path)
        if split.split("[")[0] not in builder.info.splits:
            raise UserError(
                f"{str(path)!r} has no split {split!r}; known: {sorted(builder.info.splits)}."
            )
        decoders = {
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        self._split = split
        try:
            self._records = builder.as_data_source(split, decoders=decoders)
        except NotImplementedError as error:
            raise UserError(
                f"{str(path)!r} has a file format without random access ({error}); prepare it with "
                "`file_format='array_record'`."
            ) from None

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return dict(self._records[index])

    def locate(self, index):
        """Split and number."""
        return f"{self._split}, record {index}"
