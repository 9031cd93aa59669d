"""Where the face in a picture is, so that a cut can keep it.

Imports errors. OpenCV's cascade for frontal faces is fast and needs no download; it finds large upright faces that look
into the camera, and misses profiles and small ones. OpenCV is an extra: it is imported when a face is looked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simplewan.errors import Problem, UserError

if TYPE_CHECKING:
    import numpy as np

CASCADE = "haarcascade_frontalface_default.xml"
SMALLEST = 0.05  # of the picture's shorter edge
LONGEST_EDGE = 640  # larger pictures are made smaller first: it is no worse, and many times as fast


def find_face(frame_HWC: np.ndarray) -> tuple[float, float] | None:
    """The centre (x, y) of the largest face in (H, W, 3) uint8 RGB, in 0..1 of width and height; None without one.

    Raises UserError where OpenCV is not installed.
    """
    cv2, classifier = _classifier()
    height, width = frame_HWC.shape[:2]
    grey = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)
    factor = LONGEST_EDGE / max(width, height)
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    smallest = max(20, round(SMALLEST * min(grey.shape)))
    found = classifier.detectMultiScale(
        cv2.equalizeHist(grey), scaleFactor=1.1, minNeighbors=5, minSize=(smallest, smallest)
    )
    if len(found) == 0:
        return None
    # Of two of one size the upper left one, so that it does not depend on the order in which they were found.
    left, top, across, down = max((tuple(int(x) for x in box) for box in found), key=_rank)
    return (left + across / 2) / grey.shape[1], (top + down / 2) / grey.shape[0]


def _rank(box: tuple[int, ...]) -> tuple[int, int, int]:
    left, top, across, down = box
    return across * down, -top, -left


def _classifier() -> tuple[Any, Any]:
    """OpenCV and its cascade: a new one each time, since threads cannot share it and reading it takes little."""
    try:
        import cv2
    except ImportError:
        raise UserError(
            Problem(
                'crop_style = "face"',
                "takes OpenCV, which is not installed",
                fix="pip install 'simplewan[faces]', or choose another crop_style",
            )
        ) from None
    return cv2, cv2.CascadeClassifier(cv2.data.haarcascades + CASCADE)
