"""From a decoded frame to RGB pixels: the colour matrix, the size, transparency, and which way is up.

Imports `mediainfo`. swscale goes from the frame's own planes to planar RGB of the wanted size in one pass: bicubic with
a = -0.6, widened when shrinking (so antialiased), chroma from where H.273 says it lies. That equals a computation in
float64 to the rounding, gives the same bits with any number of threads and on every processor, and planar RGB is what
swscale computes fastest. Frames that are RGB or transparent already are resized by PIL instead: swscale would take
them through YUV.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simplewan.data.mediainfo import EXACT_CONVERSION, HD_LINES, MediaError

if TYPE_CHECKING:
    import numpy as np

    Planes = list[np.ndarray]

Size = tuple[int, int]

# A conversion takes about a millisecond, and decoding goes on meanwhile: more threads would only wait for each other.
CONVERSION_THREADS = 2
UNNAMED = 2  # of colour matrices (ITU-T H.273)


class Converter:
    """Turns the frames of one file into pixels; setting up swscale costs as much as a conversion, so it is kept."""

    def __init__(self, sizes: Sequence[Size] = ()) -> None:
        """`sizes`: (width, height) of the picture as shown, gone through in turn; none: it stays as large as it is."""
        from av.video.reformatter import VideoReformatter

        self._sizes = tuple(sizes)
        self._scalers = [VideoReformatter() for _ in range(max(1, len(self._sizes)))]

    def __call__(self, frame: Any) -> Planes:
        """Red, green and blue, upright; transparent pixels are flattened on white.

        The file's colour matrix and range are honoured; where none is named it is BT.709 from 720 lines on, BT.601
        below.
        """
        transpose, mirror, flip = turn(frame)
        sizes = [size[::-1] if transpose else size for size in self._sizes]
        if _is_opaque_yuv(frame.format):
            planes = self._scaled(frame, sizes)
        else:
            planes = channels(resized(_flattened(self._converted(frame)), sizes))
        if transpose:
            planes = [plane.T for plane in planes]
        if mirror:
            planes = [plane[:, ::-1] for plane in planes]
        if flip:
            planes = [plane[::-1] for plane in planes]
        return planes

    def _scaled(self, frame: Any, sizes: Sequence[Size]) -> Planes:
        import numpy as np
        from av.video.reformatter import ColorRange

        matrix, light = _matrix(frame), _range(frame)
        for size, scaler in zip(sizes[:-1], self._scalers, strict=False):
            frame = scaler.reformat(
                frame,
                *size,
                format="yuv444p",
                src_colorspace=matrix,
                dst_colorspace=matrix,
                src_color_range=light,
                dst_color_range=light,
                interpolation=EXACT_CONVERSION,
                threads=CONVERSION_THREADS,
            )
        width, height = sizes[-1] if sizes else (frame.width, frame.height)
        rgb = self._scalers[-1].reformat(
            frame,
            width,
            height,
            format="gbrp",
            src_colorspace=matrix,
            src_color_range=light,
            dst_color_range=ColorRange.JPEG,
            interpolation=EXACT_CONVERSION,
            threads=CONVERSION_THREADS,
        )
        green, blue, red = (
            np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width] for plane in rgb.planes
        )
        return [red, green, blue]

    def _converted(self, frame: Any) -> np.ndarray:
        from av.video.reformatter import ColorRange

        return (
            self._scalers[-1]
            .reformat(
                frame,
                format="rgba" if _has_alpha(frame.format) else "rgb24",
                src_colorspace=_matrix(frame),
                src_color_range=_range(frame),
                dst_color_range=ColorRange.JPEG,
                interpolation=EXACT_CONVERSION,
            )
            .to_ndarray()
        )


def channels(pixels_HWC: np.ndarray) -> Planes:
    """Red, green and blue of (H, W, 3)."""
    return [pixels_HWC[..., channel] for channel in range(3)]


def resized(pixels_HWC: np.ndarray, sizes: Sequence[Size]) -> np.ndarray:
    """(H, W, 3) uint8 brought to each (width, height) in turn: bicubic, antialiased, the same bits everywhere (PIL)."""
    import numpy as np
    from PIL import Image

    for size in sizes:
        if size != (pixels_HWC.shape[1], pixels_HWC.shape[0]):
            picture = Image.fromarray(np.ascontiguousarray(pixels_HWC))
            pixels_HWC = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    return pixels_HWC


def turn(frame: Any) -> tuple[bool, bool, bool]:
    """(transpose, mirror left-right, mirror top-bottom) that bring a decoded frame upright.

    From the display matrix a b u / c d v / x y w: a point goes to (a x + c y, b x + d y). Raises MediaError for turns
    that are no quarter turns.
    """
    try:
        matrix = struct.unpack("<9i", bytes(frame.side_data["DISPLAYMATRIX"]))
    except KeyError:
        return False, False, False
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if b == c == 0 and a and d:
        return False, a < 0, d < 0
    if a == d == 0 and b and c:
        return True, c < 0, b < 0
    raise MediaError(f"is turned by {frame.rotation} degrees; only quarter turns are read")


def _has_alpha(pixel_format: Any) -> bool:
    return any(component.is_alpha for component in pixel_format.components)


def _is_opaque_yuv(pixel_format: Any) -> bool:
    return not (pixel_format.is_rgb or pixel_format.has_palette or _has_alpha(pixel_format))


def _matrix(frame: Any) -> int | None:
    """What stands in for a colour matrix that is not named; None: the frame names its own."""
    from av.video.reformatter import Colorspace

    if int(frame.colorspace) != UNNAMED:
        return None
    return Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601


def _range(frame: Any) -> int:
    from av.video.reformatter import ColorRange

    if frame.format.name.startswith("yuvj"):
        return ColorRange.JPEG
    return int(frame.color_range)


def _flattened(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) from (H, W, 3 or 4), on white where it is transparent."""
    import numpy as np

    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.uint32)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
