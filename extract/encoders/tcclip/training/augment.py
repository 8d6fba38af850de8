"""What a decode process makes of a training video: random frames, cropped, mirrored, recoloured.

Every draw is a function of a seed, so a video looks the same in any number of processes, and again when a run
is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .....errors import MissingDependencyError
from ....plan import Geometry, Recipe
from ....preprocess import Frames, resize
from ...base import ClipSpec
from ..sampling import ViewSampling

_SIDES = (1.0, 0.875, 0.75, 0.66)  # of a crop, in shares of the short side
_MOST_APART = 1  # places in this list between width and height
_PLACES = ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2))  # of a crop: quarters of what is left beside and above it
_FLIPPED, _RECOLOURED, _GREY = 0.5, 0.8, 0.2  # shares of the videos
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.4, 0.4, 0.2, 0.1  # most change of each


@dataclass(frozen=True)
class TrainingRecipe(Recipe):
    """The recipe of one training video in one epoch.

    Args:
        seed: of how its frames are changed; which frames there are is up to `windowing`.
        flips: whether it may be mirrored.
    """

    seed: int = 0
    flips: bool = True

    def geometry(self, height: int, width: int) -> Geometry:
        """See `Recipe.geometry`."""
        return _Augmentation(self, height, width)


def training_recipe(spec: ClipSpec, seed: int, *, flips: bool) -> TrainingRecipe:
    """One clip of random frames, changed at random."""
    return TrainingRecipe(spec, ViewSampling(spec.frames, 1, 1, seed=seed), seed=seed, flips=flips)


class _Augmentation(Geometry):
    """One draw for a video: the prepared frame is the crop that the model sees."""

    def __init__(self, recipe: TrainingRecipe, height: int, width: int) -> None:
        super().__init__(recipe, height, width)
        # Frames are prepared in their order, so a colour drawn per frame is a function of the seed as well.
        self._random = np.random.RandomState(recipe.seed)
        self.offsets = [(0, 0)]
        self._crop = random_crop(*self._size, self._random)
        self._flip = recipe.flips and self._random.rand() < _FLIPPED
        self._recolour = self._random.rand() < _RECOLOURED
        self._grey = self._random.rand() < _GREY

    def prepare(self, image: Frames) -> Frames:
        """A decoded frame as the model is to see it."""
        spec = self._spec
        crop = resize(image, *self._size, spec)[self._crop]
        crop = resize(crop, spec.height, spec.width, spec)
        if self._flip:
            crop = crop[:, ::-1]
        if self._recolour or self._grey:
            crop = self._coloured(crop)
        return np.ascontiguousarray(crop)

    def _coloured(self, frame: Frames) -> Frames:
        pil = import_pillow()
        image = pil.Image.fromarray(np.ascontiguousarray(frame))
        if self._recolour:
            for change in self._random.permutation(4):
                image = _CHANGES[change](pil, image, self._random)
        if self._grey:
            image = image.convert("L").convert("RGB")
        return np.asarray(image)


def random_crop(height: int, width: int, random: np.random.RandomState) -> tuple[slice, slice]:
    """A crop of one of four sides, of width and height alike or one apart, in a corner or in the centre."""
    short = min(height, width)
    n = len(_SIDES)
    shapes = [(i, j) for i in range(n) for j in range(n) if abs(i - j) <= _MOST_APART]
    i, j = shapes[random.randint(len(shapes))]
    crop_width, crop_height = int(short * _SIDES[i]), int(short * _SIDES[j])
    right, down = _PLACES[random.randint(len(_PLACES))]
    x, y = right * ((width - crop_width) // 4), down * ((height - crop_height) // 4)
    return slice(y, y + crop_height), slice(x, x + crop_width)


def import_pillow() -> Any:
    """PIL with the modules that are used here, or the error that says how to install it."""
    try:
        import PIL.Image
        import PIL.ImageEnhance
    except ImportError:
        raise MissingDependencyError(
            "Pillow is not installed", where="training of TC-CLIP", fix="pip install 'dejavid[tcclip]'"
        ) from None
    return PIL


def _enhance(kind: str, most: float) -> Any:
    def change(pil: Any, image: Any, random: np.random.RandomState) -> Any:
        return getattr(pil.ImageEnhance, kind)(image).enhance(random.uniform(1 - most, 1 + most))

    return change


def _turn_hue(pil: Any, image: Any, random: np.random.RandomState) -> Any:
    pixels = np.array(image.convert("HSV"))
    # uint8 wraps around, as the circle of hues does.
    pixels[..., 0] += np.uint8(int(random.uniform(-_HUE, _HUE) * 255) % 256)
    return pil.Image.frombytes("HSV", image.size, pixels.tobytes()).convert("RGB")


_CHANGES = (
    _enhance("Brightness", _BRIGHTNESS),
    _enhance("Contrast", _CONTRAST),
    _enhance("Color", _SATURATION),
    _turn_hue,
)
