"""Pictures over a film: scanpaths drawn, heat maps of one and of many, a reading as an animation, attention maps.

A film is a PIL image or a (H, W) uint8 array; pictures keep its aspect ratio, the longer side is `size` pixels. Boxes
are `{"name", "box": [x1, y1, x2, y2]}` in 0..1 of the image. Fixations off the image are not drawn, and the others
keep their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import animation
from .keyframes import KeyFrame
from .scanpath import Scanpath

Colour = tuple[int, int, int]

TIME_COLOURS: tuple[Colour, ...] = ((61, 219, 217), (122, 140, 255), (214, 115, 255), (255, 122, 144))
"""First to last fixation: all four are bright enough for the darkest film; the numbers say the order without them."""
HEAT_COLOURS: tuple[Colour, ...] = ((10, 5, 40), (88, 24, 140), (196, 48, 110), (248, 130, 40), (255, 233, 120))
"""No to most dwell, rising in lightness throughout."""
BOX_COLOUR: Colour = (255, 190, 92)

RADIUS = 0.045  # of the longer side, for one second: area is proportional to dwell
MIN_RADIUS = 0.018  # the number still fits
_CAPTION = 0.036  # of the longer side: height of the letters below an animation
_FADE = 5.0  # seconds of the reading in which a fixation fades: of a long one the film stays visible
_HOLD = 1.2  # seconds that the last frame stays
_MAX_STEPS = 240  # of a .gif or .webp, besides the frames at which something begins or ends
_DONE, _TO_COME = (225, 225, 225), (70, 70, 70)  # colours of the bar
_OVERSAMPLING = 2
_HEAT_CELLS = 256  # along the longer side


def draw_scanpath(
    film: Image.Image | np.ndarray,
    scanpath: Scanpath,
    *,
    boxes: Sequence[dict[str, Any]] = (),
    size: int = 1024,
) -> Image.Image:
    """RGB picture: fixations as numbered circles, their area the dwell, coloured by order; saccades as arrows."""
    canvas = to_grey(film, size * _OVERSAMPLING).convert("RGB")
    _draw_boxes(canvas, boxes)
    _draw_gaze(canvas, scanpath)
    _draw_names(canvas, boxes)
    return canvas.resize(_fit(canvas.size, size), Image.Resampling.BOX)


def draw_heatmap(
    film: Image.Image | np.ndarray, scanpath: Scanpath, *, sigma: float = 0.05, size: int = 1024
) -> Image.Image:
    """RGB picture: duration-weighted density of the fixations over the film; the plain film where nobody looked.

    `sigma` is the Gaussian's standard deviation in fractions of the longer side.
    """
    return draw_density(film, [scanpath], sigma=sigma, size=size)


def draw_key_frame(
    film: Image.Image | np.ndarray, scanpath: Scanpath, frame: KeyFrame, *, sigma: float = 0.05
) -> Image.Image:
    """A key-frame image as GazeX shows it to a model: the film, the heat of the frame's own fixations over it, and the
    frame's box outlined.

    Args:
        film: (H, W) uint8 or an image.
        scanpath: that the frame is of.
        sigma: of the Gaussians, see `draw_heatmap`.

    Returns:
        An RGB image of the film's size, its longer side at most 1024 pixels.
    """
    film = to_grey(film)
    picture = draw_heatmap(film, scanpath[list(frame.fixations)], sigma=sigma, size=min(1024, max(film.size)))
    _draw_boxes(picture, [{"box": frame.box}])
    return picture


def draw_density(
    film: Image.Image | np.ndarray, scanpaths: Sequence[Scanpath], *, sigma: float = 0.05, size: int = 1024
) -> Image.Image:
    """RGB picture: `draw_heatmap` of many scanpaths, as of several readers or of a model's samples.

    It is the mean of their densities, each of which sums to 1, so that a slow reader counts as much as a quick one.
    A scanpath without dwell on the image has no density and does not count; with none that has, the film is plain.
    """
    picture = to_grey(film, size).convert("RGBA")
    heat = _heat(scanpaths, picture.size, sigma)
    picture.alpha_composite(heat.resize(picture.size, Image.Resampling.BICUBIC))
    return picture.convert("RGB")


def draw_attention(
    film: Image.Image | np.ndarray, maps: Mapping[str, np.ndarray], *, size: int = 512, columns: int = 3
) -> Image.Image:
    """RGB picture: the film once for each map, with the map over it and its name above, `columns` in a row.

    The colours say how many times even attention a place has: from once, which is clear, to twice or, where that is
    more, to the highest place of all maps. So panels compare with one another, and a flat map leaves its film plain;
    behind each name stands how high its map goes.

    Args:
        maps: name -> (rows, columns) over the whole film, not negative, on any scale.
        size: longer side of a panel in pixels.

    Raises:
        ValueError: without a map, or for one that is none.
    """
    if not maps:
        raise ValueError("there is no map to draw")
    times = {name: _times_even(name, values) for name, values in maps.items()}
    ground = to_grey(film, size).convert("RGBA")
    (width, height), bar = ground.size, round(0.07 * size)
    highest = max(2.0, *(values.max() for values in times.values()))
    columns = min(columns, len(maps))
    picture = Image.new("RGB", (columns * width, math.ceil(len(maps) / columns) * (height + bar)))
    for number, (name, values) in enumerate(times.items()):
        x, y = number % columns * width, number // columns * (height + bar)
        strength = np.clip((values - 1) / (highest - 1), 0, 1).astype(np.float32)
        fine = Image.fromarray(strength).resize(ground.size, Image.Resampling.BICUBIC)
        panel = Image.alpha_composite(ground, _layer(np.clip(np.asarray(fine), 0, 1)))
        picture.paste(panel.convert("RGB"), (x, y + bar))
        _draw_title(picture, f"{name}, up to {values.max():.1f}x even", (x, y, width, bar))
    return picture


def heat_layer(scanpath: Scanpath, film_size: tuple[int, int], *, sigma: float = 0.05) -> Image.Image:
    """What `draw_heatmap` lays over a film of `film_size` (width, height): small RGBA, clear where nobody looked."""
    return _heat([scanpath], film_size, sigma)


def animate_scanpath(
    film: Image.Image | np.ndarray,
    scanpath: Scanpath,
    path: str | Path,
    *,
    sentences: Sequence[dict[str, Any]] = (),
    fps: float = 12,
    speed: float = 1.0,
    size: int = 512,
    font: str | Path | None = None,
) -> Path:
    """Write the reading in real time as a looping .gif or .webp, or as an .mp4 (H.264; extra "video").

    A fixation is lit while it lasts and grows with its dwell, then it fades within 5 s of the reading; a bar below the
    film tells the time, and below that stands the sentence that is being said. The reading begins with the first
    fixation or sentence, and ends with the whole scanpath, which stays for 1.2 s.

    Args:
        sentences: `{"text", "start", "end"}` each, seconds on the clock of the scanpath, as `dictation.sentences_of`
            gives them. Where two overlap, the one that began last is shown.
        fps: frames a second, above 0 and at most 50. What begins or ends does so with the nearest frame, and is seen
            in one at least. A .gif or .webp has those frames and at most 240 others.
        speed: 2 is twice as fast.
        size: longer side of the film in pixels; both sides are rounded to even ones.
        font: TrueType file for sentences; Pillow's own font has neither accents nor other alphabets than the Latin.

    Raises:
        ValueError: for another suffix, a sentence without text or times, or one with letters that the font lacks.
        ImportError: for .mp4 without PyAV.
    """
    path = Path(path)
    animation.check_format(path)
    if not 0 < fps <= 50:
        raise ValueError(f"fps must be above 0 and at most 50, got {fps}")
    if not 0 < speed < math.inf:
        raise ValueError(f"speed must be a number above 0, got {speed}")
    film = to_grey(film)
    film = film.resize([2 * side for side in _fit(film.size, size / 2)], Image.Resampling.LANCZOS)
    reading = _Reading(film, scanpath, sentences, fps / speed, font)
    frames = reading.frames(reading.end if path.suffix.lower() == ".mp4" else _MAX_STEPS)
    animation.write(path, reading.draw, frames, fps, _HOLD)
    return path


def to_grey(film: Image.Image | np.ndarray, size: int | None = None) -> Image.Image:
    """A film as an "L" image, its longer side `size` pixels; at its own size when `size` is None."""
    if isinstance(film, np.ndarray):
        if film.ndim != 2 or film.dtype != np.uint8:
            raise ValueError(f"a film must be a (H, W) uint8 array or a PIL image, got {film.dtype} {film.shape}")
        film = Image.fromarray(film)
    film = film.convert("L")
    return film if size is None else film.resize(_fit(film.size, size), Image.Resampling.LANCZOS)


def _fit(film_size: tuple[int, int], size: float) -> tuple[int, int]:
    scale = size / max(film_size)
    return max(1, round(film_size[0] * scale)), max(1, round(film_size[1] * scale))


def _ramp(colours: Sequence[Colour], position: np.ndarray | float) -> np.ndarray:
    """Colours (..., 3) uint8 at `position` 0..1 along evenly spaced stops."""
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(position, stops, channel) for channel in zip(*colours, strict=True)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _time_colours(count: int) -> list[Colour]:
    return [tuple(colour) for colour in _ramp(TIME_COLOURS, np.linspace(0, 1, count)).tolist()]


def _heat(scanpaths: Sequence[Scanpath], film_size: tuple[int, int], sigma: float) -> Image.Image:
    """The mean density of the scanpaths as a layer over a film, RGBA, `_HEAT_CELLS` pixels along the longer side."""
    import torch

    from .models.gaze_maps import density_map

    width, height = _fit(film_size, _HEAT_CELLS)
    round_sigma = torch.tensor([sigma * max(width, height) / side for side in (width, height)])
    density = np.zeros((height, width), np.float32)
    for scanpath in scanpaths:
        fixations = torch.tensor(scanpath.drop_outside().to_array())[None]
        mask = torch.ones(fixations.shape[:2])
        density += density_map(fixations, mask, (height, width), round_sigma, normalize=True)[0].numpy()
    return _layer(density / max(density.max(), 1e-12))


def _layer(heat: np.ndarray) -> Image.Image:
    """RGBA, clear where a map (height, width) of 0..1 is 0."""
    pixels = np.empty((*heat.shape, 4), np.uint8)
    pixels[..., :3] = _ramp(HEAT_COLOURS, heat)
    pixels[..., 3] = 200 * np.clip(heat * 1.6 - 0.02, 0, 1) ** 0.6
    return Image.fromarray(pixels)


def _times_even(name: str, values: np.ndarray) -> np.ndarray:
    """A map in units of its mean; all one where it is zero."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(f"{name}: a map must be (rows, columns), finite and not negative, got {values.shape}")
    values = values / (values.max() or 1.0)
    return values / values.mean() if values.any() else np.ones_like(values)


def _draw_title(picture: Image.Image, name: str, bar: tuple[int, int, int, int]) -> None:
    """A name in a bar (x, y, width, height), in smaller letters where it is too long."""
    x, y, width, height = bar
    draw, letters = ImageDraw.Draw(picture), 0.6 * height
    letters *= min(1.0, 0.92 * width / max(1.0, ImageFont.load_default(letters).getlength(name)))
    font = ImageFont.load_default(max(1.0, letters))
    draw.text((x + width / 2, y + height / 2), name, (255, 255, 255), font, anchor="mm")


class _Reading:
    """A reading in numbered frames, `rate` of them a second of the reading; `film` is "L", its sides even."""

    def __init__(self, film, scanpath: Scanpath, sentences, rate: float, font) -> None:
        self.film, self.scanpath, self.fade = film, scanpath, _FADE * rate
        begun = scanpath.onset.astype(np.float64)
        times = [np.stack([begun, begun + scanpath.duration], axis=1), _spans(sentences)]
        start = np.concatenate(times).min(initial=math.inf)
        # (n, 2) and (m, 2): the first frame of each fixation and each sentence, and the first after it
        self.looked, self.said = (np.rint((seconds - start) * rate).astype(int) for seconds in times)
        for span in (self.looked, self.said):
            span[:, 1] = np.maximum(span[:, 1], span[:, 0] + 1)
        self.end = int(np.concatenate([self.looked, self.said]).max(initial=0))
        texts = ["", *(sentence["text"] for sentence in sentences)] if len(sentences) else []
        self.captions = animation.captions(texts, film.width, _CAPTION * max(film.size), font)

    def frames(self, steps: int) -> list[int]:
        """Those where something begins or ends, the last one, and at most `steps` at even distances."""
        even = range(0, self.end, max(1, math.ceil(self.end / max(steps, 1))))
        return sorted({*even, *self.looked.ravel().tolist(), *self.said.ravel().tolist(), self.end})

    def draw(self, frames: Sequence[int]) -> Iterator[Image.Image]:
        """The pictures of some frames."""
        size = [side * _OVERSAMPLING for side in self.film.size]
        ground = self.film.convert("RGB").resize(size, Image.Resampling.NEAREST)
        first, last = self.looked.T
        for frame in frames:
            canvas = ground.copy()
            if frame == self.end:
                _draw_gaze(canvas, self.scanpath)
            else:
                strength = 1 - np.clip((frame - last) / self.fade, 0, 1)
                seen = np.clip((frame - first) / (last - first), 0, 1)
                _draw_gaze(canvas, self.scanpath, (frame >= first) & (strength > 0), seen, strength, frame < last)
            yield self._with_bar(canvas.reduce(_OVERSAMPLING), frame)

    def _with_bar(self, film: Image.Image, frame: int) -> Image.Image:
        """Bar and caption put below the film."""
        (width, height), bar = film.size, 2 * max(1, round(0.004 * max(film.size)))
        picture = Image.new("RGB", (width, height + bar + (self.captions[0].height if self.captions else 0)))
        picture.paste(film)
        picture.paste(_TO_COME, (0, height, width, height + bar))
        picture.paste(_DONE, (0, height, round(width * frame / max(self.end, 1)), height + bar))
        if self.captions:
            now = np.flatnonzero((self.said[:, 0] <= frame) & (frame < self.said[:, 1]))
            number = 1 + now[np.argmax(self.said[now, 0])] if len(now) else 0
            picture.paste(self.captions[number], (0, height + bar))
        return picture


def _spans(sentences: Sequence[dict[str, Any]]) -> np.ndarray:
    """(m, 2) float64 start and end of sentences that are what they should be."""
    for number, sentence in enumerate(sentences):
        times = [sentence.get(name) for name in ("start", "end")]
        timed = all(isinstance(time, Real) and math.isfinite(time) for time in times) and times[0] <= times[1]
        if not timed or not isinstance(sentence.get("text"), str):
            raise ValueError(f"sentence {number} must have text, and start and end in seconds, got {sentence}")
    return np.array([(sentence["start"], sentence["end"]) for sentence in sentences], np.float64).reshape(-1, 2)


def _draw_gaze(canvas: Image.Image, scanpath: Scanpath, shown=True, seen=1.0, strength=1.0, lit=False) -> None:
    """Draw fixations and the saccades that lead to them; all arguments are (n,) arrays, or one value for all.

    `shown`: which are drawn. `seen`: 0..1, share of the dwell so far, with which a circle's area grows. `strength`:
    0..1, their opacity. `lit`: which are marked as being looked at.
    """
    draw = ImageDraw.Draw(canvas, "RGBA")  # blends what it draws into an RGB image
    longer = max(canvas.size)
    strength, lit = (np.broadcast_to(value, len(scanpath)) for value in (strength, lit))
    least = MIN_RADIUS * longer
    whole = np.maximum(RADIUS * np.sqrt(scanpath.duration) * longer, least)
    radii = np.sqrt(least**2 + (whole**2 - least**2) * seen)
    points = list(zip(*scanpath.to_pixels(canvas.size), strict=True))
    colours = _time_colours(len(scanpath))
    shown = [int(i) for i in np.flatnonzero(scanpath.inside & shown)]
    for i in shown:
        if i and scanpath.inside[i - 1]:
            _draw_saccade(draw, points[i - 1], points[i], whole[i - 1], radii[i], colours[i], strength[i], longer)
    for i in shown:
        _draw_fixation(draw, points[i], radii[i], colours[i], strength[i], lit[i], longer)
    font = ImageFont.load_default(MIN_RADIUS * 1.25 * longer)
    for i in shown:
        alpha = round(255 * strength[i] ** 0.5)
        outline = {"stroke_width": round(0.0022 * longer), "stroke_fill": (0, 0, 0, alpha)}
        draw.text(points[i], str(i + 1), (255, 255, 255, alpha), font, anchor="mm", **outline)


def _draw_fixation(draw, centre, radius, colour, strength, lit, longer) -> None:
    x, y = centre
    line = 0.0026 * longer
    rings = [(line * 0.6, line * 2.2, (0, 0, 0, round(90 * strength))), (0, line, (*colour, round(255 * strength)))]
    if lit:  # a white ring around: told by brightness, not by hue
        rings[:1] = [(line * 3, line * 4, (0, 0, 0, 120)), (line * 2.4, line * 2.4, (255, 255, 255, 255))]
    for grow, width, rgba in rings:
        edge = radius + grow
        draw.ellipse((x - edge, y - edge, x + edge, y + edge), outline=rgba, width=round(width))
    inner = radius - line
    fill = 130 if lit else 84 * strength
    draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=(*colour, round(fill)))


def _draw_saccade(draw, start, end, start_radius, end_radius, colour, strength, longer) -> None:
    """An arrow from edge to edge of the two circles; none between circles that touch."""
    start, end = np.array(start, float), np.array(end, float)
    distance = float(np.hypot(*(end - start)))
    gap = 0.004 * longer
    if distance <= start_radius + end_radius + 2 * gap:
        return
    along = (end - start) / distance
    across = np.array([-along[1], along[0]])
    start, end = start + along * (start_radius + gap), end - along * (end_radius + gap)
    head = min(0.016 * longer, distance - start_radius - end_radius - 2 * gap)
    neck = end - along * head
    width = 0.0028 * longer
    for extra, rgba in ((0.0016 * longer, (0, 0, 0, round(90 * strength))), (0, (*colour, round(235 * strength)))):
        half, wing = width / 2 + extra, head * 0.42 + extra
        outline = [start + across * half, neck + across * half, neck + across * wing, end + along * extra]
        outline += [neck - across * wing, neck - across * half, start - across * half]
        draw.polygon([tuple(point) for point in outline], fill=rgba)


def _draw_boxes(canvas: Image.Image, boxes: Sequence[dict[str, Any]]) -> None:
    draw, longer = ImageDraw.Draw(canvas, "RGBA"), max(canvas.size)
    for record in boxes:
        corners = [value * side for value, side in zip(record["box"], canvas.size * 2, strict=True)]
        line = max(1, round(0.0026 * longer))
        draw.rounded_rectangle(corners, 0.008 * longer, (*BOX_COLOUR, 22), (*BOX_COLOUR, 235), line)


def _draw_names(canvas: Image.Image, boxes: Sequence[dict[str, Any]]) -> None:
    """Each name in the upper left corner of its box; apart from `_draw_boxes`, so that no arrow crosses a name."""
    draw, longer = ImageDraw.Draw(canvas, "RGBA"), max(canvas.size)
    font, pad = ImageFont.load_default(0.017 * longer), 0.006 * longer
    plates: list[tuple[float, ...]] = []
    for record in boxes:
        x, y = (value * side + 3 * pad for value, side in zip(record["box"][:2], canvas.size, strict=True))
        x1, y1, x2, y2 = draw.textbbox((0, 0), record["name"], font)
        x = min(x, canvas.size[0] - x2 - 2 * pad)  # a name too long for the picture moves to the left
        for left, top, right, bottom in sorted(plates, key=lambda plate: plate[1]):  # and one over another down
            if x + x1 - pad < right and left < x + x2 + pad and y + y1 - pad < bottom and top < y + y2 + pad:
                y = bottom - y1 + 1.5 * pad
        plates.append((x + x1 - pad, y + y1 - pad, x + x2 + pad, y + y2 + pad))
        draw.rounded_rectangle(plates[-1], pad, (0, 0, 0, 170))
        draw.text((x, y), record["name"], (*BOX_COLOUR, 255), font)
