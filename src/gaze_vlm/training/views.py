"""One geometric view of a film, through which its image, its boxes and its gaze all go."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image

from ..scanpath import Scanpath

Box = Sequence[float]


@dataclass(frozen=True)
class View:
    """A crop, then a mirroring. `box` is (x1, y1, x2, y2) in 0..1 of the film."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False

    @classmethod
    def random(cls, rng: Random, min_side: float = 0.85, flip: float = 0.5) -> "View":
        """A crop whose sides are `min_side`..1 of the film's, mirrored with probability `flip`."""
        width, height = rng.uniform(min_side, 1), rng.uniform(min_side, 1)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        return cls((left, top, left + width, top + height), rng.random() < flip)

    def image(self, image: Image.Image, size: int) -> Image.Image:
        """The film in this view, `size` x `size` pixels."""
        x1, y1, x2, y2 = self.box
        pixels = (x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height)
        view = image.resize((size, size), Image.Resampling.BILINEAR, box=pixels)
        return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else view

    def box_of(self, box: Box) -> list[float] | None:
        """A box of the film in this view, cut to it; None when nothing of it is left."""
        x1, y1, x2, y2 = self.box
        left, right = ((edge - x1) / (x2 - x1) for edge in (box[0], box[2]))
        top, bottom = ((edge - y1) / (y2 - y1) for edge in (box[1], box[3]))
        if self.flip:
            left, right = 1 - right, 1 - left
        cut = [min(1.0, max(0.0, edge)) for edge in (left, top, right, bottom)]
        return cut if cut[2] > cut[0] and cut[3] > cut[1] else None

    def scanpath(self, scanpath: Scanpath) -> Scanpath:
        """The gaze in this view; fixations that fall outside are kept, off the image."""
        cropped = scanpath.crop(self.box)
        return cropped.flip_horizontal() if self.flip else cropped
