"""What an animation needs besides its pictures: captions below a film, and .gif, .webp or .mp4 written."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FORMATS = (".gif", ".webp", ".mp4")
BACKGROUND = 20  # grey level behind captions


def check_format(path: str | Path) -> None:
    """Raises what writing would: ValueError for another suffix than `FORMATS`, ImportError for .mp4 without PyAV."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: an animation is written as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if suffix == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ImportError('an .mp4 needs the package av: pip install "gaze2report[video]"') from error


def write(
    path: Path, draw: Callable[[Sequence[int]], Iterator[Image.Image]], frames: Sequence[int], fps: float, hold: float
) -> None:
    """Write pictures that are shown one after the other, 1/fps seconds a frame.

    Args:
        draw: gives the RGB pictures of some frames, of one size, its sides even (H.264 halves the resolution of
            colour).
        frames: numbers of the frames that are pictures of their own, increasing; each is shown until the next.
        hold: seconds that the last one is shown.
    """
    if path.suffix.lower() == ".mp4":
        _write_video(path, draw(frames), [*np.diff(frames), max(1, round(hold * fps))], fps)
        return
    seconds = [*(frame / fps for frame in frames), frames[-1] / fps + hold]
    unit = 10 if path.suffix.lower() == ".gif" else 1  # milliseconds, in which the format counts
    milliseconds = unit * np.diff(np.rint(1000 / unit * np.array(seconds))).astype(int)  # rounded without drift
    pictures = draw(frames)
    if path.suffix.lower() == ".gif":
        # One palette for all, undithered: what does not change is then not written again, and does not flicker.
        palette = _palette(list(draw(frames[:: math.ceil(len(frames) / 8)])))
        pictures = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    times = {"duration": milliseconds.tolist(), "loop": 0}
    next(pictures).save(path, save_all=True, append_images=pictures, optimize=True, quality=80, **times)


def _write_video(path: Path, pictures: Iterator[Image.Image], counts: Sequence[int], fps: float) -> None:
    """H.264 in yuv420p, which every browser plays, one picture in memory at a time."""
    import av

    rate, number = Fraction(fps).limit_denominator(1000), 0
    # an absolute path: of "a:b.mp4" FFmpeg would take the a for a protocol
    with av.open(str(path.resolve()), "w", options={"movflags": "+faststart"}) as container:
        for picture, count in zip(pictures, counts, strict=True):
            if number == 0:
                stream = container.add_stream("libx264", rate, {"crf": "20"})
                stream.pix_fmt, (stream.width, stream.height) = "yuv420p", picture.size
            for _ in range(count):
                frame = av.VideoFrame.from_image(picture)
                frame.pts, frame.time_base, number = number, 1 / rate, number + 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _palette(pictures: Sequence[Image.Image]) -> Image.Image:
    """A third of the palette for the grey film, the rest for the coloured pixels of some pictures."""
    greys = np.linspace(0, 255, 88).round().astype(np.uint8)
    pixels = np.concatenate([np.asarray(picture).reshape(-1, 3) for picture in pictures])
    coloured = pixels[np.ptp(pixels, axis=1) > 8]
    entries = [np.repeat(greys, 3)]
    if len(coloured):
        entries.append(Image.fromarray(coloured[None]).quantize(160, dither=Image.Dither.NONE).getpalette())
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(entries).astype(np.uint8).tobytes())
    return palette


def captions(texts: Sequence[str], width: int, letter: float, font: str | Path | None = None) -> list[Image.Image]:
    """The texts in white on dark, wrapped and centred: "L" images of one size, `width` pixels wide, of even height.

    `letter` is the height of the letters in pixels, `font` a TrueType file; without one it is Pillow's own font.
    """
    try:
        letters = ImageFont.load_default(letter) if font is None else ImageFont.truetype(str(font), letter)
    except OSError as error:
        raise ValueError(f"{font}: cannot be read as a font ({error})") from None
    for text in texts:
        unknown = [character for character in "".join(text.split()) if _is_missing(character, letters)]
        if unknown:
            raise ValueError(f"the font has no {unknown[0]!r}, which is in {text!r}: pass a font that has it")
    pad, line = 0.5 * letter, 1.35 * letter
    wrapped = [_wrapped(text, letters, width - 2 * pad) for text in texts]
    height = 2 * math.ceil((line * max(map(len, wrapped), default=0) + 2 * pad) / 2)
    pictures = []
    for lines in wrapped:
        pictures.append(Image.new("L", (width, height), BACKGROUND))
        draw = ImageDraw.Draw(pictures[-1])
        for number, words in enumerate(lines):
            draw.text((width / 2, pad + line * (number + 0.5)), words, 255, letters, anchor="mm")
    return pictures


def _wrapped(text: str, letters: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of at most `width` pixels."""
    for columns in range(len(text), 0, -1):
        lines = textwrap.wrap(text, columns)
        if all(letters.getlength(line) <= width for line in lines):
            break
    return lines if text else []


def _is_missing(character: str, letters: ImageFont.FreeTypeFont) -> bool:
    """Whether the font would draw what it draws for U+FFFF, which is no character."""
    return bytes(letters.getmask(character)) == bytes(letters.getmask("\uffff"))
