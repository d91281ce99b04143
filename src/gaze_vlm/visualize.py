"""Pictures of gaze over a film: the scanpath drawn, a heat map of dwell, the reading as an animation.

A film is a PIL image or a (H, W) uint8 array; pictures keep its aspect ratio, the longer side is `size` pixels. Boxes
are `{"name", "box": [x1, y1, x2, y2]}` in 0..1 of the image. Fixations off the image are not drawn, and the others
keep their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .scanpath import Scanpath

Colour = tuple[int, int, int]

TIME_COLOURS: tuple[Colour, ...] = ((61, 219, 217), (122, 140, 255), (214, 115, 255), (255, 122, 144))
"""First to last fixation: all four are bright enough for the darkest film; the numbers say the order without them."""
HEAT_COLOURS: tuple[Colour, ...] = ((10, 5, 40), (88, 24, 140), (196, 48, 110), (248, 130, 40), (255, 233, 120))
"""No to most dwell, rising in lightness throughout."""
BOX_COLOUR: Colour = (255, 190, 92)

RADIUS = 0.045  # of the longer side, for one second: area is proportional to dwell
MIN_RADIUS = 0.018  # the number still fits
_FADE = 1.2  # seconds in which a fixation of the animation fades
_FADED = 0.55
_HOLD = 1.2  # seconds that the last frame stays
_MAX_FRAMES = 240  # of an animation: what takes longer is shown at a lower rate
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
    picture = to_grey(film, size).convert("RGBA")
    heat = heat_layer(scanpath, picture.size, sigma=sigma)
    picture.alpha_composite(heat.resize(picture.size, Image.Resampling.BICUBIC))
    return picture.convert("RGB")


def heat_layer(scanpath: Scanpath, film_size: tuple[int, int], *, sigma: float = 0.05) -> Image.Image:
    """What `draw_heatmap` lays over a film of `film_size` (width, height): small RGBA, clear where nobody looked."""
    import torch

    from .models.gaze_maps import density_map

    width, height = _fit(film_size, _HEAT_CELLS)
    fixations = torch.tensor(scanpath.drop_outside().to_array())[None]
    round_sigma = torch.tensor([sigma * max(width, height) / side for side in (width, height)])
    density = density_map(fixations, torch.ones(fixations.shape[:2]), (height, width), round_sigma)[0].numpy()
    density = density / max(density.max(), 1e-12)
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., :3] = _ramp(HEAT_COLOURS, density)
    pixels[..., 3] = 200 * np.clip(density * 1.6 - 0.02, 0, 1) ** 0.6
    return Image.fromarray(pixels)


def animate_scanpath(
    film: Image.Image | np.ndarray, scanpath: Scanpath, path: str | Path, *, fps: int = 12, size: int = 512
) -> Path:
    """Write the reading in real time as a looping .gif or .webp: each fixation grows with its dwell, then fades.

    It begins with the first fixation. A frame lasts 1/fps seconds, longer where the reading would take more than 240
    of them (GIF counts in hundredths: rounded, without drift).
    """
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".webp"):
        raise ValueError(f"{path}: an animation is written as .gif or .webp")
    ground = to_grey(film, size).convert("RGB")
    ground = ground.resize([side * _OVERSAMPLING for side in ground.size], Image.Resampling.NEAREST)
    if len(scanpath):
        scanpath = replace(scanpath, onset=scanpath.onset - scanpath.onset[0])
    end = float((scanpath.onset + scanpath.duration).max(initial=0))
    step = max(1 / fps, end / (_MAX_FRAMES - 1))
    moments = [*(i * step for i in range(math.ceil(round(end / step, 3)))), end]
    ticks = [round(100 * moment) for moment in moments]
    milliseconds = [10 * int(tick) for tick in np.diff([*ticks, ticks[-1] + 100 * _HOLD])]
    frames = _frames(ground, scanpath, moments)
    if path.suffix.lower() == ".gif":
        # One palette for all frames, undithered: what does not change is then not written again, and does not flicker.
        palette = _palette(list(_frames(ground, scanpath, moments[:: max(1, len(moments) // 8)])))
        frames = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    options = {"quality": 80} if path.suffix.lower() == ".webp" else {"optimize": False}
    next(frames).save(path, save_all=True, append_images=frames, duration=milliseconds, loop=0, **options)
    return path


def to_grey(film: Image.Image | np.ndarray, size: int | None = None) -> Image.Image:
    """A film as an "L" image, its longer side `size` pixels; at its own size when `size` is None."""
    if isinstance(film, np.ndarray):
        if film.ndim != 2 or film.dtype != np.uint8:
            raise ValueError(f"a film must be a (H, W) uint8 array or a PIL image, got {film.dtype} {film.shape}")
        film = Image.fromarray(film)
    film = film.convert("L")
    return film if size is None else film.resize(_fit(film.size, size), Image.Resampling.LANCZOS)


def _fit(film_size: tuple[int, int], size: int) -> tuple[int, int]:
    scale = size / max(film_size)
    return max(1, round(film_size[0] * scale)), max(1, round(film_size[1] * scale))


def _ramp(colours: Sequence[Colour], position: np.ndarray | float) -> np.ndarray:
    """Colours (..., 3) uint8 at `position` 0..1 along evenly spaced stops."""
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(position, stops, channel) for channel in zip(*colours, strict=True)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _time_colours(count: int) -> list[Colour]:
    return [tuple(colour) for colour in _ramp(TIME_COLOURS, np.linspace(0, 1, count)).tolist()]


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """A third of the palette for the grey film, the rest for the coloured pixels of some frames."""
    greys = np.linspace(0, 255, 88).round().astype(np.uint8)
    pixels = np.concatenate([np.asarray(frame).reshape(-1, 3) for frame in frames])
    coloured = pixels[np.ptp(pixels, axis=1) > 8]
    entries = [np.repeat(greys, 3)]
    if len(coloured):
        entries.append(Image.fromarray(coloured[None]).quantize(160, dither=Image.Dither.NONE).getpalette())
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(entries).astype(np.uint8).tobytes())
    return palette


def _frames(ground: Image.Image, scanpath: Scanpath, moments: Sequence[float]) -> Iterator[Image.Image]:
    for moment in moments:
        canvas = ground.copy()
        _draw_gaze(canvas, scanpath, moment)
        yield canvas.reduce(_OVERSAMPLING)


def _draw_gaze(canvas: Image.Image, scanpath: Scanpath, moment: float | None = None) -> None:
    """Draw the gaze up to `moment` (seconds), what is past faded; without a moment all of it at full strength."""
    draw = ImageDraw.Draw(canvas, "RGBA")  # blends what it draws into an RGB image
    longer = max(canvas.size)
    now = math.inf if moment is None else moment
    radii = np.maximum(RADIUS * np.sqrt(scanpath.duration), MIN_RADIUS) * longer
    seen = np.clip((now - scanpath.onset) / np.maximum(scanpath.duration, 1e-6), 0, 1)
    least = MIN_RADIUS * longer
    radii = np.sqrt(least**2 + (radii**2 - least**2) * seen)  # the area grows with the dwell so far
    since = now - scanpath.onset - scanpath.duration
    strength = np.ones(len(scanpath)) if moment is None else 1 - (1 - _FADED) * np.clip(since / _FADE, 0, 1)
    points = list(zip(*scanpath.to_pixels(canvas.size), strict=True))
    colours = _time_colours(len(scanpath))
    shown = [int(i) for i in np.flatnonzero(scanpath.inside & (scanpath.onset <= now))]
    for i in shown:
        if i and scanpath.inside[i - 1]:
            _draw_saccade(draw, points[i - 1], points[i], radii[i - 1], radii[i], colours[i], strength[i], longer)
    for i in shown:
        _draw_fixation(draw, points[i], radii[i], colours[i], strength[i], longer)
    font = ImageFont.load_default(MIN_RADIUS * 1.25 * longer)
    for i in shown:
        alpha = round(255 * strength[i] ** 0.5)
        outline = {"stroke_width": round(0.0022 * longer), "stroke_fill": (0, 0, 0, alpha)}
        draw.text(points[i], str(i + 1), (255, 255, 255, alpha), font, anchor="mm", **outline)


def _draw_fixation(draw, centre, radius, colour, strength, longer) -> None:
    x, y = centre
    line = 0.0026 * longer
    for grow, width, rgba in (
        (line * 0.6, line * 2.2, (0, 0, 0, round(90 * strength))),
        (0, line, (*colour, round(255 * strength))),
    ):
        edge = radius + grow
        draw.ellipse((x - edge, y - edge, x + edge, y + edge), outline=rgba, width=round(width))
    inner = radius - line
    draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=(*colour, round(84 * strength)))


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
