"""Pictures with PIL: size, orientation and RGB pixels.

Imports this room's records and opening. The orientation in EXIF is applied; transparent pixels are flattened on white;
16-bit greys keep their upper 8 bits; colour profiles are not applied. The whole picture is decoded when it is probed,
so that a damaged file is found before training.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from simplewan.data.mediainfo import MediaError, MediaInfo
from simplewan.data.opening import Place, cannot_read, opened

if TYPE_CHECKING:
    import numpy as np

ORIENTATION = 0x0112  # of the tags of EXIF 2.3
# What PIL raises for damaged pictures; the last two for tags of a TIFF or in EXIF that are missing or of another type.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, struct.error)


def probe_image(place: Place) -> MediaInfo:
    """Size as shown. Raises MediaError for files that do not decode and for animations."""
    pixels = read_image(place)
    return MediaInfo(pixels.shape[1], pixels.shape[0], 1, fps=0.0, seconds=0.0, is_image=True)


def read_image(place: Place) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises MediaError."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    with opened(place) as opened_file:
        file = opened_file if isinstance(opened_file, Path) else _fetched(opened_file)
        try:
            with Image.open(file) as image:
                if getattr(image, "n_frames", 1) > 1 and image.format in ("WEBP", "PNG"):
                    raise MediaError(f"is an animation of {image.n_frames} frames; convert it to mp4")
                return np.array(_flatten(_upright(image)))
        except MediaError:
            raise
        except UnidentifiedImageError:
            raise MediaError("is not a picture that can be read") from None
        except PermissionError as error:
            raise cannot_read(error) from None
        except (*_DAMAGE, Image.DecompressionBombError) as error:
            raise MediaError(f"does not decode: {error}") from None


def _fetched(file: BinaryIO) -> BinaryIO:
    """All of a stream in memory: what fails from here on is the picture, not the place."""
    try:
        return io.BytesIO(file.read())
    except OSError as error:
        raise cannot_read(error) from None


def _upright(image: Any) -> Any:
    """Turned as EXIF says. The other tags are not looked at: odd ones are common, and do not matter."""
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(image.getexif().get(ORIENTATION))
    return image if turn is None else image.transpose(turn)


def _flatten(image: Any) -> Any:
    """RGB, on white where it is transparent."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray((grey.clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
