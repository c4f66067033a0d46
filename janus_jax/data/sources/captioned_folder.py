"""A folder of pictures with a text file beside each: `fox.jpg` and `fox.txt`."""

from pathlib import Path

from janus_jax.data.files import PICTURES, files_at
from janus_jax.data.images import BadRecord


class CaptionedFolderSource:
    """Pictures of a folder and its folders, with their text as `caption` and as `prompt`."""

    def __init__(self, path):
        self._files = files_at(path, *PICTURES)

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        picture = Path(self._files[index])
        try:
            text = picture.with_suffix(".txt").read_bytes()
        except OSError:
            raise BadRecord("no text file beside the picture") from None
        return {"image": picture.read_bytes(), "caption": text, "prompt": text}

    def locate(self, index):
        """The picture's path."""
        return self._files[index]
