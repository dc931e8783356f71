"""Reading a picture: its bytes' digest, and its pixels as the vision encoder takes them. Safe in any thread.

C: colour channels   H, W: height and width in pixels
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fednano.errors import ExamplesInvalid
from fednano.model.parts import Processor


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A file, and an example that it belongs to."""

    path: Path
    pid: str


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """``pixels_CHW`` is None where they were not wanted."""

    picture: Picture
    sha256: str
    pixels_CHW: Tensor | None

    def check_unchanged(self, sha256: str) -> None:
        """Raises ExamplesInvalid for a file that was another one when the client started."""
        if self.sha256 != sha256:
            raise _invalid(self.picture, "was changed while the client ran: start it again")


def decode(picture: Picture, processor: Processor, is_wanted: Callable[[str], bool]) -> Decoded:
    """``is_wanted`` is asked with the SHA-256 whether the pixels are. Raises ExamplesInvalid for what is no picture."""
    try:
        content = picture.path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        with Image.open(io.BytesIO(content)) as image:
            if is_wanted(sha256):
                return Decoded(picture=picture, sha256=sha256, pixels_CHW=processor.pixels(image))
            # Whether it is one is told at the start, not in the middle of a round.
            image.verify()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise _invalid(picture, f"is no picture that can be read ({type(error).__name__})") from None
    return Decoded(picture=picture, sha256=sha256, pixels_CHW=None)


def _invalid(picture: Picture, what: str) -> ExamplesInvalid:
    message = f"example {picture.pid}: {picture.path} {what}"
    return ExamplesInvalid(message, file=str(picture.path), pid=picture.pid, field="image")
