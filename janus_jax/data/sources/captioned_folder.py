"""A folder of images, each with a text file of the same name: `fox.jpg` and `fox.txt`."""

from pathlib import Path

from janus_jax.data.files import IMAGE_ENDINGS, files_at
from janus_jax.data.images import BadRecord


class CaptionedFolderSource:
    """Images of a folder and its subfolders, with their text as `caption` and as `prompt`."""

    def __init__(self, path):
        self._files = files_at(path, *IMAGE_ENDINGS)

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        file = Path(self._files[index])
        try:
            text = file.with_suffix(".txt").read_bytes()
        except OSError:
            raise BadRecord("no text file for the image") from None
        return {"image": file.read_bytes(), "caption": text, "prompt": text}

    def locate(self, index):
        """The image's path."""
        return self._files[index]
