"""Frames to the encoder's size, uint8 in, uint8 out; scaling to floats is the encoder's.

Resizing follows VideoMAE V2's own test code: bilinear on uint8 without antialiasing, so a real pixel grid is
sampled; an encoder whose spec says antialias gets that instead.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .encoders.base import ClipSpec

Frames = NDArray[np.uint8]
Crops = Literal["center", "three", "squash"]


def resized_size(height: int, width: int, spec: ClipSpec, crops: Crops) -> tuple[int, int]:
    """(height, width) of a frame before cropping.

    The short side becomes `spec.short_side`, the long one keeps the aspect ratio, rounded down.
    Frames that are to be squashed become exactly the encoder's size.
    """
    if crops == "squash" or spec.resize == "squash":
        return spec.height, spec.width
    short = spec.short_side
    if min(height, width) == short:
        return height, width
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def crop_offsets(height: int, width: int, spec: ClipSpec, crops: Crops) -> list[tuple[int, int]]:
    """(y, x) of each crop in a resized frame.

    Three crops lie at the start, middle and end of the longer side, the height when both are equal.
    """
    if crops == "squash" or spec.resize == "squash":
        return [(0, 0)]
    free_y, free_x = height - spec.height, width - spec.width
    middle_y, middle_x = free_y // 2, free_x // 2
    if crops == "center":
        return [(middle_y, middle_x)]
    if height >= width:
        return [(int(k * free_y / 2), middle_x) for k in range(3)]
    return [(middle_y, int(k * free_x / 2)) for k in range(3)]


def resize(frame: Frames, height: int, width: int, spec: ClipSpec) -> Frames:
    """One frame (H, W, 3) at another size."""
    if frame.shape[:2] == (height, width):
        return frame
    image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    # uint8 in, uint8 out; within 1 grey level of OpenCV's INTER_LINEAR.
    out = F.interpolate(image, size=(height, width), mode=spec.interpolation, antialias=spec.antialias)
    result: Frames = out[0].permute(1, 2, 0).numpy()
    return result
