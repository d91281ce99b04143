"""Read a chest film from PNG, JPEG or DICOM into one 8-bit grey image, or say in one sentence why not.

Files come from strangers. A format is recognised by its content, the size is checked in the header before anything is
decoded, a file that is cut short is refused and never shown in part, and of a DICOM file only the tags that are needed
for the picture are parsed: patient data is never read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

MAX_BYTES = 512 * 1024**2
MAX_PIXELS = 100_000_000
MIN_SIDE = 32  # pixels
MAX_ASPECT = 10  # longer side to shorter side

# A pixel is coloured when its channels lie further apart than COLOUR_SPREAD levels of 255, a picture when more than
# COLOUR_SHARE of its pixels are. Chroma noise and a tint of some percent stay below 32 levels, a marker or a caption
# below a tenth of the film; in photographs a third of the pixels or more are coloured.
COLOUR_SPREAD = 32
COLOUR_SHARE = 0.10
_COLOUR_SAMPLE = 512  # pixels a side; picked, not averaged: an average would turn colour noise into grey

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# A marker, as against FF inside entropy-coded data (followed by 00, a restart, or in JPEG-LS by 00..7F).
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_JPEG_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF0..15 and JPEG-LS
_ORIENTATION_TAG = 0x0112
_TURN = {  # EXIF orientation -> the turn that makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_MODALITIES = {"CR", "DX", "DR", "RG"}  # DR is no DICOM term, but it is written by some systems
_RADIOGRAPHY_CLASSES = {  # accepted without a Modality: CR, DX for presentation and for processing, secondary capture
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.7",
}
_DEFLATED = (b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.95")
_PHOTOMETRIC = {"MONOCHROME1", "MONOCHROME2", "RGB"}
# Free text ends up in ViewPosition, names too: it is kept only when every word of it is one of these.
# fmt: off
_VIEW_WORDS = {
    "AP", "PA", "LL", "RL", "LAT", "LATERAL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "AXIAL",
    "LORDOTIC", "OBLIQUE", "DECUBITUS", "SUPINE", "ERECT", "XTABLE", "SWIMMERS",
}
_DICOM_TAGS = [
    "SOPClassUID", "Modality", "ViewPosition", "PatientOrientation",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept",
    "VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "PixelData",
]
# fmt: on


class ImageError(ValueError):
    """A file that is no usable film; the message is one line: the path, a colon, the reason."""


@dataclass(frozen=True, eq=False)
class Film:
    """One radiograph, ready for a model.

    Args:
        pixels: (H, W) uint8, read-only, grey 0..255, bright = dense (bone white, air black).
        path: where it was read from, as given.
        format: "png", "jpeg" or "dicom".
        sha256: hex digest of the file's bytes.
        view: the DICOM ViewPosition ("PA", "LL", ...) when it is a known view; None otherwise and for PNG and JPEG.
    """

    pixels: np.ndarray
    path: str
    format: str
    sha256: str
    view: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def is_lateral(self) -> bool:
        """Whether `view` is known and no frontal one."""
        return _is_lateral(self.view)

    def to_pil(self, mode: str = "RGB") -> Image.Image:
        """The film as a PIL image in `mode`; in "RGB" all three channels are equal."""
        return Image.fromarray(self.pixels).convert(mode)


def read_film(path: str | os.PathLike[str]) -> Film:
    """Read a PNG, JPEG or DICOM radiograph as 8-bit grey.

    PNG and JPEG: EXIF orientation is applied, transparency is laid on black, 16-bit grey is stretched linearly from
    its own minimum..maximum. DICOM: modality LUT or rescale, then VOI LUT (scaled from its own minimum..maximum), or
    the first window, or a linear stretch from the 0.5th to the 99.5th percentile; MONOCHROME1 is inverted, padding is
    black, the pixel aspect is taken as 1:1. A JPEG that its writer closed properly in mid-picture cannot be told from
    a whole one; every other truncation is refused.

    Args:
        path: file to read; what it is, is decided by its content and not by its suffix.

    Raises:
        ImageError: missing, unreadable, cut short, no image, too large or too small, in colour, several frames, not a
            radiograph, a frontal one that is turned. One line that begins with the path.
    """
    name = os.fsdecode(path)
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    kind = "image"
    try:
        data = read_bytes(name)
        kind = _recognise(data)
        pixels, view = _read_dicom(data) if kind == "dicom" else (_read_picture(data, kind), None)
    except ImageError as error:
        raise ImageError(f"{shown}: {error}") from None
    except MemoryError:
        raise ImageError(f"{shown}: there is not enough memory to read this {kind.upper()} file") from None
    # Decoders raise anything on hostile bytes (struct.error, SyntaxError, AttributeError, zlib.error, ...), and their
    # messages may quote tag values.
    except Exception:
        raise ImageError(f"{shown}: broken {kind.upper()} file, it cannot be decoded") from None
    pixels.setflags(write=False)
    return Film(pixels, name, kind, hashlib.sha256(data).hexdigest(), view)


def read_bytes(name: str) -> bytes:
    """All of a regular file of at most `MAX_BYTES`; else an `ImageError` that leaves out the name."""
    if "\0" in name:
        raise ImageError("no such file")
    try:
        status = os.stat(name)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("is a directory, not an image file")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("is not a regular file")
        if status.st_size > MAX_BYTES:
            raise ImageError(
                f"file of {status.st_size / 1e6:,.0f} MB is too large (at most {MAX_BYTES / 1e6:,.0f} MB)"
            )
        with open(name, "rb") as file:
            data = file.read(status.st_size)
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except PermissionError:
        raise ImageError("no permission to read this file") from None
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from None
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    return data


def _recognise(data: bytes) -> str:
    if data.startswith(_PNG_MAGIC):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    # Without a preamble a data set starts with an element of group 0002 or 0008, which no text file does.
    if data[128:132] == b"DICM" or data[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return "dicom"
    raise ImageError("not an image file (PNG, JPEG or DICOM expected)")


def _check_size(width: int, height: int, frames: int = 1) -> None:
    size = f"{width:,} x {height:,} pixels" + (f", {frames:,} frames" if frames > 1 else "")
    if width * height * max(frames, 1) > MAX_PIXELS:
        raise ImageError(f"too large ({size}; at most {MAX_PIXELS // 1_000_000} million pixels)")
    if min(width, height) < 1:
        raise ImageError(f"has no pixels ({size})")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"too small ({size}; each side must have at least {MIN_SIDE})")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"too long and narrow for a film ({size}; the sides may be at most {MAX_ASPECT}:1)")


# --- PNG and JPEG ----------------------------------------------------------------------------------------------------


def _read_picture(data: bytes, kind: str) -> np.ndarray:
    """(H, W) uint8 from a whole PNG or JPEG file."""
    if kind == "png":
        _check_png(data)
    else:
        _check_size(*_jpeg_size(data))
    # Pillow's classes themselves, not Image.open: that one warns or raises by a size limit of its own.
    opened = PngImagePlugin.PngImageFile if kind == "png" else JpegImagePlugin.JpegImageFile
    with quiet():  # a broken EXIF block is no reason to refuse a film, or to speak
        image = opened(io.BytesIO(data))
        try:
            turn = _TURN.get(image.getexif().get(_ORIENTATION_TAG))
        except Exception:  # on such a block Pillow raises anything
            turn = None
    _check_size(*image.size)  # what the decoder will allocate
    image.load()
    grey = _grey(image)
    return np.array(grey if turn is None else grey.transpose(turn))


def _check_png(data: bytes) -> None:
    """Walk the chunks: one whole picture of an allowed size, with all of its rows. Pillow lets missing rows pass."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ImageError("PNG file is cut short")
    width, height, depth, colour_type, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    _check_size(width, height)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour_type, 1)
    passes = [(0, 0, 1, 1)]
    if interlace:  # Adam7: x and y of the first pixel, x and y step (PNG specification, 8.2)
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    missing = 0  # bytes of pixel rows not seen yet; one byte a row names its filter
    for x, y, step_x, step_y in passes:
        missing += -(-(height - y) // step_y) * (1 + (-(-(width - x) // step_x) * bits + 7) // 8)
    view, position, inflate = memoryview(data), len(_PNG_MAGIC), zlib.decompressobj()
    while position + 12 <= len(data):
        length, chunk = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        body = view[position + 8 : end - 4]
        if chunk[:1].isupper() and zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise ImageError("broken PNG file, a checksum does not fit")
        if chunk == b"acTL" and int.from_bytes(body[:4]) > 1:
            raise ImageError("animated PNG, a single picture is expected")
        if chunk == b"IDAT":
            rest: bytes | memoryview = body
            while rest and missing > 0:  # in pieces: a small chunk can inflate a thousandfold
                missing -= len(inflate.decompress(rest, 1 << 20))
                rest = inflate.unconsumed_tail
        if chunk == b"IEND":
            if missing > 0 and missing > len(inflate.flush()):  # up to a match or two may wait inside
                raise ImageError("PNG file lacks a part of its picture")
            return
        position = end
    raise ImageError("PNG file is cut short")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the frame header of a JPEG or JPEG-LS stream that is whole up to its end marker."""
    size, position = None, 2
    while match := _JPEG_MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        if marker == 0xD9:
            if size is None:
                raise ImageError("JPEG file without a picture")
            return size
        if marker in _JPEG_FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", data, position + 3)
            size = (width, height)
        if marker == 0xE2 and data[position + 2 : position + 6] == b"MPF\0":
            raise ImageError("JPEG file with several pictures (MPO), a single one is expected")
        position += int.from_bytes(data[position : position + 2])
    raise ImageError("JPEG file is cut short")


def _grey(image: Image.Image) -> Image.Image:
    """Mode "L" of a decoded picture; raises on a picture in colour."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        return Image.fromarray(_look_up(values, low, np.linspace(0, 1, high - low + 1)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size)
        canvas.paste(image, mask=image.getchannel("A"))
        image = canvas
    if image.mode in ("1", "L"):
        return image.convert("L")
    image = image.convert("RGB")
    sample = image.resize([min(side, _COLOUR_SAMPLE) for side in image.size], Image.Resampling.NEAREST)
    share = float((np.ptp(np.asarray(sample), axis=2) > COLOUR_SPREAD).mean())
    if share > COLOUR_SHARE:
        raise ImageError(f"a colour picture, not an X-ray ({share:.0%} of its pixels are coloured)")
    return image.convert("L")


def _look_up(values: np.ndarray, low: int, brightness: np.ndarray) -> np.ndarray:
    """uint8 picture: `brightness` (0..1, one entry for each whole number from `low` up) at `values` (H, W)."""
    # The nudge rounds ties up on both sides of an inversion, so that MONOCHROME1 and 2 give the same film.
    table = np.floor(brightness * 255 + (0.5 + 1e-6)).astype(np.uint8)
    pixels = np.empty(values.shape, np.uint8)
    for row, line in enumerate(values):  # a row at a time: NumPy widens an index to 8 bytes a pixel
        pixels[row] = table[line.astype(np.int64) - low]
    return pixels


# --- DICOM -----------------------------------------------------------------------------------------------------------

_QUIET = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that pydicom or Pillow warn of or log reaches the user; one thread at a time, since both are global."""
    logger = logging.getLogger("pydicom")
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        propagate, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.propagate = propagate


def _read_dicom(data: bytes) -> tuple[np.ndarray, str | None]:
    """(H, W) uint8 and the view from a whole DICOM file, with or without its preamble."""
    if any(uid in data for uid in _DEFLATED):
        raise ImageError("deflated DICOM is not supported, save it uncompressed first")  # inflates without a limit
    with quiet(), np.errstate(all="ignore"):
        ds = _parse(data)
        _check_header(ds)
        stored = _decode(ds)
        pixels = _render(stored, ds) if stored.ndim == 2 else np.array(_grey(Image.fromarray(stored)))
        words = str(ds.get("ViewPosition") or "").upper().split()
        view = " ".join(words) if words and _VIEW_WORDS.issuperset(words) else None
        return pixels, view if _is_lateral(view) else _oriented(view, ds.get("PatientOrientation"))


def _parse(data: bytes) -> Any:
    """A pydicom data set with `_DICOM_TAGS` and a transfer syntax."""
    import pydicom
    from pydicom import uid

    source = io.BytesIO(data)
    ds = pydicom.dcmread(source, force=True, specific_tags=_DICOM_TAGS)
    if data[128:132] != b"DICM" and not ("Rows" in ds and "Columns" in ds and "BitsAllocated" in ds):
        raise ImageError("not an image file (PNG, JPEG or DICOM expected)")
    end = source.tell()
    if "PixelData" in ds:
        raw = ds.get_item("PixelData")
        # 8: the delimiter that closes an element of undefined length
        end = max(end, raw.value_tell + (len(raw.value or b"") + 8 if raw.length == 0xFFFFFFFF else raw.length))
    elif b"\xe0\x7f\x10\x00" in data or b"\x7f\xe0\x00\x10" in data:  # the tag is there, its value is not
        end = len(data) + 1
    if end > len(data):
        raise ImageError("DICOM file is cut short")
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, little = ds.original_encoding
        syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else syntax
    return ds


def _number(ds: Any, keyword: str, default: int | None = None) -> int:
    value = ds.get(keyword)
    if value is None and default is not None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ImageError(f"DICOM file without a valid {keyword}") from None


def _term(value: Any) -> str:
    """A coded term, for a message; anything that does not look like one may be anybody's data and is not repeated."""
    return str(value) if re.fullmatch(r"[A-Z][A-Z0-9_]{0,15}|PALETTE COLOR", str(value)) else "an unknown term"


def _check_header(ds: Any) -> None:
    modality = ds.get("Modality")
    if modality and modality not in _MODALITIES:
        raise ImageError(f"DICOM modality is {_term(modality)}, a radiograph (CR, DX or RG) is expected")
    if not modality and ds.get("SOPClassUID") not in _RADIOGRAPHY_CLASSES:
        raise ImageError("DICOM file names no modality and is not of a radiography class")
    if "PixelData" not in ds:
        raise ImageError("DICOM file without pixel data")
    frames = _number(ds, "NumberOfFrames", 1)
    _check_size(_number(ds, "Columns"), _number(ds, "Rows"), frames)
    if frames > 1:
        raise ImageError(f"DICOM file with {frames} frames, a single one is expected")
    photometric = ds.get("PhotometricInterpretation")
    if photometric not in _PHOTOMETRIC:
        raise ImageError(f"DICOM photometric interpretation is {_term(photometric)}, MONOCHROME1 or 2 is expected")
    samples, allocated, stored = (_number(ds, k) for k in ("SamplesPerPixel", "BitsAllocated", "BitsStored"))
    if samples != (3 if photometric == "RGB" else 1):
        raise ImageError(f"DICOM file with {samples} samples per pixel in {photometric}")
    if allocated not in (8, 16) or not 8 <= stored <= allocated or (photometric == "RGB" and allocated != 8):
        raise ImageError(f"DICOM file with {stored} bits stored in {allocated}, 8 to 16 bits are expected")


def _is_lateral(view: str | None) -> bool:
    words = set((view or "").upper().split()) - {"ERECT", "SUPINE"}  # say nothing of the direction
    return bool(words) and not words & {"PA", "AP"}


def _oriented(view: str | None, orientation: Any) -> str | None:
    """The view of a film whose rows run to the patient's left and columns to the feet, or which does not say; a
    lateral one where rows run to the front or the back. Left is never guessed."""
    given = orientation if isinstance(orientation, MutableSequence) else [orientation or ""]
    towards = [str(one) for one in given]
    if len(towards) == 2 and towards[0][:1] in ("A", "P"):
        return "LATERAL"
    if any(towards) and [one[:1] for one in towards] != ["L", "F"]:
        named = "\\".join(towards) if all(re.fullmatch("[A-Z]{1,3}", one) for one in towards) else "an unknown term"
        raise ImageError(f"DICOM patient orientation is {named}, L\\F is expected of a frontal film")
    return view


def _decode(ds: Any) -> np.ndarray:
    """Stored values: (H, W) integers, or (H, W, 3) uint8 for RGB."""
    from pydicom.encaps import generate_frames
    from pydicom.pixels import get_decoder, pixel_array

    width, height = _number(ds, "Columns"), _number(ds, "Rows")
    expected = width * height * _number(ds, "SamplesPerPixel") * _number(ds, "BitsAllocated") // 8
    syntax = ds.file_meta.TransferSyntaxUID
    try:
        get_decoder(syntax)
    except NotImplementedError:
        raise ImageError("DICOM transfer syntax is not supported") from None
    if not syntax.is_encapsulated:
        if len(ds.PixelData) < expected:
            raise ImageError("DICOM file lacks a part of its pixel data")
        return pixel_array(ds)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    if len(frame) > 2 * expected + 2**20:
        raise ImageError("DICOM pixel data is larger than its picture")
    # Decoders show a stream that is cut short in part, and allocate what the stream, not the data set, asks for.
    if "JPEG" in syntax.name:
        if b"\xff\xd9" not in frame[-16:]:
            raise ImageError("DICOM file lacks a part of its pixel data")
        inner = (width, height)
        if frame.startswith(b"\xff\xd8"):
            inner = _jpeg_size(frame)
        elif frame.startswith(b"\xff\x4f\xff\x51"):  # JPEG 2000: extent and offset of the reference grid
            right, bottom, left, top = struct.unpack_from(">IIII", frame, 8)
            inner = (right - left, bottom - top)
        if inner != (width, height):
            raise ImageError(f"DICOM header says {width} x {height} pixels, its pixel data {inner[0]} x {inner[1]}")
    try:
        return pixel_array(ds)
    except RuntimeError:  # no plugin for this syntax, or none that could read these bytes
        hint = "" if importlib.util.find_spec("gdcm") else '; try: pip install "gaze2report[dicom]"'
        raise ImageError(f"{syntax.name} pixel data could not be decoded{hint}") from None


def _render(stored: np.ndarray, ds: Any) -> np.ndarray:
    """(H, W) uint8 from stored values (H, W). All steps run on a table of the at most 65,536 possible values."""
    bits, signed = _number(ds, "BitsStored"), _number(ds, "PixelRepresentation", 0) == 1
    low = -(1 << (bits - 1)) if signed else 0
    codes = np.arange(low, low + (1 << bits))
    if stored.min() < codes[0] or stored.max() > codes[-1]:  # overlays in the bits above BitsStored
        shift = 8 * stored.dtype.itemsize - bits
        stored = (stored << shift) >> shift
    values = codes.astype(np.float64)
    little = ds.file_meta.TransferSyntaxUID.is_little_endian
    if ds.get("ModalityLUTSequence"):
        values = _lut(values, ds.ModalityLUTSequence[0], little)
    elif ds.get("RescaleSlope") is not None and ds.get("RescaleIntercept") is not None:
        values = values * float(ds.RescaleSlope) + float(ds.RescaleIntercept)

    padding = np.zeros(codes.shape, bool)
    if ds.get("PixelPaddingValue") is not None:
        first = _number(ds, "PixelPaddingValue")
        last = _number(ds, "PixelPaddingRangeLimit", first)
        padding = (codes >= min(first, last)) & (codes <= max(first, last))

    if ds.get("VOILUTSequence"):
        brightness = _lut(values, ds.VOILUTSequence[0], little, scaled=True)
    elif (brightness := _window(values, ds)) is None:
        counts = sum(np.bincount(line.astype(np.int64) - low, minlength=len(codes)) for line in stored)
        brightness = _stretch(values, np.where(padding, 0, counts))
    if ds.PhotometricInterpretation == "MONOCHROME1":
        brightness = 1 - brightness
    return _look_up(stored, low, np.where(padding, 0, brightness))


def _lut(values: np.ndarray, item: Any, little: bool, scaled: bool = False) -> np.ndarray:
    """`values` through one item of a LUT sequence (PS3.3 C.11.1); `scaled`: its own minimum..maximum becomes 0..1."""
    entries, first, _ = (int(number) for number in item.LUTDescriptor)
    lut = item.LUTData
    if isinstance(lut, bytes):
        lut = np.frombuffer(lut, ("<" if little else ">") + "u2")
    lut = np.atleast_1d(np.asarray(lut, np.float64))[: entries or 1 << 16]
    if scaled:
        lut = (lut - lut.min()) / max(np.ptp(lut), 1)
    return lut[np.clip(np.rint(values) - first, 0, len(lut) - 1).astype(np.int64)]


def _window(values: np.ndarray, ds: Any) -> np.ndarray | None:
    """Brightness 0..1 by the first window (PS3.3 C.11.2.1.2 and .3), None when there is no valid one."""
    centre, width = (np.atleast_1d(np.asarray(ds.get(k), np.float64)) for k in ("WindowCenter", "WindowWidth"))
    if not (len(centre) and len(width) and np.isfinite(centre[0]) and np.isfinite(width[0]) and width[0] > 0):
        return None
    function, offset = str(ds.get("VOILUTFunction") or "LINEAR"), values - centre[0]
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * offset / width[0]))
    if function == "LINEAR" and width[0] >= 1:
        return np.clip((offset + 0.5) / max(width[0] - 1, 1e-6) + 0.5, 0, 1)
    return np.clip(offset / width[0] + 0.5, 0, 1)


def _stretch(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Brightness 0..1 of `values`, linear from the 0.5th to the 99.5th percentile where each occurs `counts` times."""
    order = np.argsort(values)
    ranks = np.cumsum(counts[order])
    if not ranks[-1]:
        return np.zeros_like(values)
    ends = []
    for position in (0.005 * (ranks[-1] - 1), 0.995 * (ranks[-1] - 1)):
        neighbours = np.floor(position) + np.arange(2)
        at = np.searchsorted(ranks, np.minimum(neighbours, ranks[-1] - 1), side="right")
        ends.append(np.interp(position, neighbours, values[order[at]]))
    return np.clip((values - ends[0]) / max(ends[1] - ends[0], 1e-12), 0, 1)
