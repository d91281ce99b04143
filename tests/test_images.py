"""Films from PNG, JPEG and DICOM, and a refusal in one sentence for everything else. All files are made by code."""

import hashlib
import importlib.util
import io
import logging
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder, get_encoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from gaze_vlm import images
from gaze_vlm.images import Film, ImageError, read_film

PATIENT = "Doe^Jane"
HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    """(48, 64) uint8, smooth, not symmetric in any direction, 0..255."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return ((x * 3 + y * 2) * 255 // (63 * 3 + 47 * 2)).astype(np.uint8)


def png_bytes(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def jpeg_bytes(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def handmade_png(width: int, height: int, rows: bytes = b"", extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def dicom_bytes(stored: np.ndarray, preamble=True, syntax=ExplicitVRLittleEndian, bits=None, omit=(), **elements):
    """A DX file of `stored` (H, W) or (H, W, 3), with a patient's name in it, `elements` set and `omit` dropped."""
    ds = Dataset()
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = "1.2.3"
    ds.Modality = "DX"
    ds.PatientName = PATIENT
    ds.PatientID = "4711-secret"
    ds.SamplesPerPixel = 1
    if stored.ndim == 3:
        ds.SamplesPerPixel, ds.PlanarConfiguration = 3, 0
    ds.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.BitsAllocated = 8 * stored.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    big = syntax == ExplicitVRBigEndian
    data = stored.astype(stored.dtype.newbyteorder(">" if big else "<")).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    for keyword in omit:
        delattr(ds, keyword)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "1.2.3")
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    buffer = io.BytesIO()
    if preamble:
        ds.save_as(buffer, enforce_file_format=True)
    else:
        del ds.file_meta
        implicit = syntax == ImplicitVRLittleEndian
        ds.save_as(buffer, implicit_vr=implicit, little_endian=not big)
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path):
    """bytes -> Film, by way of a file whose suffix says nothing."""

    def read(data: bytes) -> Film:
        path = tmp_path / "film.bin"
        path.write_bytes(data)
        return read_film(path)

    return read


def assert_refused(path, fragment: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            read_film(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert fragment in message
    for word in ("Traceback", "Doe", "Jane", "4711"):
        assert word not in message.removeprefix(str(path))
    return message


# --- what is read


def test_film_says_what_it_is(tmp_path, grey):
    data = png_bytes(Image.fromarray(grey))
    (tmp_path / "a.jpg").write_bytes(data)  # the suffix is wrong on purpose
    film = read_film(str(tmp_path / "a.jpg"))
    assert (film.format, film.view, film.path) == ("png", None, str(tmp_path / "a.jpg"))
    assert film.sha256 == hashlib.sha256(data).hexdigest()
    assert film.size == (WIDTH, HEIGHT) and film.pixels.shape == (HEIGHT, WIDTH)
    assert film.pixels.dtype == np.uint8 and not film.pixels.flags.writeable
    assert film.to_pil().mode == "RGB" and film.to_pil("L").size == film.size
    np.testing.assert_array_equal(np.asarray(film.to_pil())[..., 1], grey)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_png_modes_give_the_same_pixels(read, grey, mode):
    np.testing.assert_array_equal(read(png_bytes(Image.fromarray(grey).convert(mode))).pixels, grey)


def test_png_of_one_bit(read, grey):
    film = read(png_bytes(Image.fromarray(grey > 100)))
    np.testing.assert_array_equal(film.pixels, np.where(grey > 100, 255, 0))


def test_interlaced_png(read):
    # Adam7 of a black 33 x 35 picture: seven passes, written by hand since Pillow does not write it
    steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    sizes = [(len(range(x, 33, dx)), len(range(y, 35, dy))) for x, y, dx, dy in steps]
    rows = b"".join(h * (b"\0" + b"\x80" * w) for w, h in sizes)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 33, 35, 8, 0, 0, 0, 1))
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert (read(b"\x89PNG\r\n\x1a\n" + header + ends).pixels == 0x80).all()


@pytest.mark.parametrize("height", [1023, 1024, 2048, 2049])
def test_an_even_png_that_compresses_a_thousandfold(read, height):
    # 1024 bytes a row: the rows end on, or just off, the pieces in which they are counted
    assert read(png_bytes(Image.new("L", (1023, height), 7))).size == (1023, height)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_laid_on_black(read, grey, mode):
    image = Image.fromarray(grey).convert(mode)
    alpha = np.full(grey.shape, 255, np.uint8)
    alpha[:, :20] = 0
    image.putalpha(Image.fromarray(alpha))
    np.testing.assert_array_equal(read(png_bytes(image)).pixels, np.where(alpha, grey, 0))


def test_palette_with_transparency(read, grey):
    image = Image.fromarray(grey).convert("P")
    film = read(png_bytes(image, transparency=bytes([0] * 100 + [255] * 156)))
    np.testing.assert_array_equal(film.pixels, np.where(grey < 100, 0, grey))


def test_png_of_16_bits_is_stretched_from_its_own_range(read, grey):
    film = read(png_bytes(Image.fromarray(grey.astype(np.uint16) * 100 + 5000)))
    np.testing.assert_array_equal(film.pixels, grey)
    assert not read(png_bytes(Image.fromarray(np.full((40, 40), 999, np.uint16)))).pixels.any()


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_modes(read, grey, mode, progressive):
    film = read(jpeg_bytes(Image.fromarray(grey).convert("RGB").convert(mode), progressive=progressive))
    assert film.format == "jpeg"
    assert np.abs(film.pixels.astype(int) - grey).max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(read, grey, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    inverse = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # what a camera held this way stores
    stored = Image.fromarray(grey)
    if orientation > 1:
        stored = stored.transpose(images._TURN[inverse[orientation]])
    film = read(jpeg_bytes(stored, exif=exif))
    assert film.size == (WIDTH, HEIGHT)
    assert np.abs(film.pixels.astype(int) - grey).max() <= 8
    np.testing.assert_array_equal(read(png_bytes(stored, exif=exif)).pixels, grey)


def test_broken_exif_leaves_the_film(read, grey, recwarn):
    film = read(jpeg_bytes(Image.fromarray(grey), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\1"))
    assert film.size == (WIDTH, HEIGHT)
    assert not recwarn.list


# --- grey or colour


@pytest.mark.parametrize("tint", [(1.0, 0.96, 0.9), (0.93, 0.96, 1.0)], ids=["sepia", "blue"])
def test_a_tinted_film_passes(read, grey, tint):
    assert read(png_bytes(Image.fromarray((grey[..., None] * tint).astype(np.uint8)))).size == (WIDTH, HEIGHT)


def test_chroma_noise_passes(read, grey):
    noise = np.random.default_rng(0).normal(0, 6, (*grey.shape, 3))
    noisy = Image.fromarray(np.clip(grey[..., None] + noise, 0, 255).astype(np.uint8))
    assert read(png_bytes(noisy)).size == read(jpeg_bytes(noisy)).size == (WIDTH, HEIGHT)


def test_a_small_coloured_marker_passes(read, grey):
    marked = np.stack([grey] * 3, axis=2)
    marked[:12, :15] = (255, 220, 0)
    assert read(png_bytes(Image.fromarray(marked))).pixels[0, 0] > 200


def photo() -> np.ndarray:
    """(600, 800, 3) uint8: blue sky, green ground, a red roof, all shaded."""
    shade = np.linspace(0.5, 1, 800)[None, :, None]
    picture = np.full((600, 800, 3), (120, 160, 220.0))
    picture[330:] = (90, 140, 60)
    picture[200:330, 300:500] = (170, 60, 50)
    return (picture * shade + np.random.default_rng(1).normal(0, 5, picture.shape)).clip(0, 255).astype(np.uint8)


def colour_noise(side: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "picture", [photo(), colour_noise(64), colour_noise(1500)], ids=["photo", "noise", "noise-XL"]
)
@pytest.mark.parametrize("encode", [png_bytes, jpeg_bytes, lambda image: dicom_bytes(np.asarray(image))])
def test_colour_is_refused(tmp_path, picture, encode):
    path = tmp_path / "colour"
    path.write_bytes(encode(Image.fromarray(picture)))
    assert "% of its pixels are coloured" in assert_refused(path, "a colour picture, not an X-ray")


# --- DICOM


def test_dicom_polarities_agree(read):
    stored = np.random.default_rng(3).integers(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16)
    for window, inverse in [({}, {}), ((2000, 3000), (4096 - 2000, 3000))]:
        one, two = (dict(zip(("WindowCenter", "WindowWidth"), w, strict=False)) for w in (inverse, window))
        bright = read(dicom_bytes(stored, bits=12, **two))
        dark = read(dicom_bytes(4095 - stored, bits=12, PhotometricInterpretation="MONOCHROME1", **one))
        np.testing.assert_array_equal(bright.pixels, dark.pixels)
        assert (bright.format, bright.pixels.min(), bright.pixels.max()) == ("dicom", 0, 255)


@pytest.mark.parametrize(
    "dtype, bits, low, high",
    [
        (np.uint8, 8, 0, 255),
        (np.uint16, 12, 0, 4095),
        (np.uint16, 16, 0, 65535),
        (np.int16, 12, -2048, 2047),
        (np.int16, 16, -32768, 32767),
        (np.int8, 8, -128, 127),
    ],
)
def test_dicom_depths(read, grey, dtype, bits, low, high):
    stored = (low + np.rint(grey / 255 * (high - low))).astype(dtype)
    pixels = read(dicom_bytes(stored, bits=bits)).pixels
    ends = np.percentile(stored, [0.5, 99.5])
    expected = np.clip((stored - ends[0]) / (ends[1] - ends[0]), 0, 1) * 255
    np.testing.assert_allclose(pixels, expected, atol=0.5001)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_and_rescale_agree_with_pydicom(read, grey, function):
    stored = grey.astype(np.uint16) * 16
    elements = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [3000, 1], "WindowWidth": [2500, 1]}
    ds = Dataset()
    ds.BitsStored, ds.PixelRepresentation, ds.PhotometricInterpretation = 12, 0, "MONOCHROME2"
    ds.VOILUTFunction = function
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    windowed = apply_voi_lut(apply_modality_lut(stored, ds), ds)
    expected = (windowed + 1000) / (4095 * 2) * 255  # pydicom's output range is that of the rescaled values
    film = read(dicom_bytes(stored, bits=12, VOILUTFunction=function, **elements))
    np.testing.assert_allclose(film.pixels, expected, atol=0.51)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_luts(read, grey, syntax):
    def lut(first, entries):
        item = Dataset()
        item.LUTDescriptor = [len(entries), first, 16]
        item["LUTDescriptor"].VR = "US"
        item.LUTData = entries
        item["LUTData"].VR = "US"
        return Sequence([item])

    film = read(
        dicom_bytes(
            grey,
            syntax=syntax,
            ModalityLUTSequence=lut(0, [i * 10 for i in range(256)]),
            VOILUTSequence=lut(500, [i * 2 for i in range(1000)]),
            WindowCenter=1,  # a LUT goes before a window
            WindowWidth=1,
        )
    )
    np.testing.assert_allclose(film.pixels, np.clip((grey * 10.0 - 500) / 999, 0, 1) * 255, atol=0.51)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_stretch(read, grey, photometric):
    stored = grey.astype(np.int16)
    stored[:, :10] = -2000
    stored[:, 10] = -1990
    elements = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990, "PhotometricInterpretation": photometric}
    pixels = read(dicom_bytes(stored, **elements)).pixels
    assert not pixels[:, :11].any()
    assert pixels[:, 11:].min() == 0 and pixels[:, 11:].max() == 255


def test_overlay_bits_above_the_stored_ones_are_dropped(read, grey):
    stored = grey.astype(np.uint16) << 4
    clean = read(dicom_bytes(stored, bits=12)).pixels
    np.testing.assert_array_equal(read(dicom_bytes(stored | 0x8000, bits=12)).pixels, clean)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("preamble", [True, False])
def test_transfer_syntaxes_with_and_without_preamble(read, grey, syntax, preamble):
    stored = grey.astype(np.uint16)
    film = read(dicom_bytes(stored, syntax=syntax, preamble=preamble, WindowCenter=128, WindowWidth=256))
    np.testing.assert_array_equal(film.pixels, grey)


def compressed(grey: np.ndarray, syntax) -> tuple[bytes, bytes]:
    """One DICOM, plain and compressed without loss."""
    buffer = io.BytesIO()
    if syntax == JPEG2000Lossless:  # pydicom has no installed encoder for it; Pillow writes it in 8 bits
        Image.fromarray(grey).save(buffer, "JPEG2000", no_jp2=True, irreversible=False)
        return dicom_bytes(grey), dicom_bytes(grey, syntax=syntax, PixelData=encapsulate([buffer.getvalue()]))
    plain = dicom_bytes(grey.astype(np.uint16) * 16, bits=12)
    ds = dcmread(io.BytesIO(plain))
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(buffer)
    return plain, buffer.getvalue()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
def test_compressed_dicom(tmp_path, read, grey, capfd, syntax):
    if not (get_decoder(syntax).is_available and (syntax == JPEG2000Lossless or get_encoder(syntax).is_available)):
        pytest.skip(f"no plugin for {syntax.name}")
    plain, packed = compressed(grey, syntax)
    np.testing.assert_array_equal(read(packed).pixels, read(plain).pixels)
    path = tmp_path / "cut.dcm"
    for length in {*range(0, len(packed), 37), *range(len(packed) - 30, len(packed))}:
        path.write_bytes(packed[:length])
        assert_refused(path, "")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
def test_a_compressed_frame_that_is_short_in_a_whole_file(tmp_path, grey, capfd, syntax):
    if not (get_decoder(syntax).is_available and (syntax == JPEG2000Lossless or get_encoder(syntax).is_available)):
        pytest.skip(f"no plugin for {syntax.name}")
    frame = next(generate_frames(dcmread(io.BytesIO(compressed(grey, syntax)[1])).PixelData, number_of_frames=1))
    stored = grey if syntax == JPEG2000Lossless else grey.astype(np.uint16)
    path = tmp_path / "cut.dcm"
    path.write_bytes(dicom_bytes(stored, syntax=syntax, PixelData=encapsulate([frame[: len(frame) // 2]])))
    assert_refused(path, "")
    assert capfd.readouterr() == ("", "")


def test_a_missing_decoder_names_the_extra(tmp_path, grey, monkeypatch):
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder

    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    header = b"\xff\xd8\xff\xf7\x00\x0b\x08" + struct.pack(">HH", HEIGHT, WIDTH) + b"\x01\x01\x11\x00\xff\xd9"
    data = dicom_bytes(grey, syntax=JPEGLSLossless, PixelData=encapsulate([header]))
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    assert_refused(path, 'pip install "gaze2report[dicom]"')


def test_a_stream_of_another_size_is_not_decoded(tmp_path, grey):
    header = b"\xff\xd8\xff\xf7\x00\x0b\x08" + struct.pack(">HH", 40000, 40000) + b"\x01\x01\x11\x00\xff\xd9"
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom_bytes(grey, syntax=JPEGLSLossless, PixelData=encapsulate([header])))
    assert_refused(path, "DICOM header says 64 x 48 pixels, its pixel data 40000 x 40000")


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # from pydicom, on writing the fixture
@pytest.mark.parametrize(
    "written, view", [("PA", "PA"), ("ap axial", "AP AXIAL"), ("", None), (PATIENT, None), ("PA Jane", None)]
)
def test_view_is_a_view_and_no_name(read, grey, written, view):
    film = read(dicom_bytes(grey, ViewPosition=written))
    assert film.view == view
    assert "Jane" not in repr(film)


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientOrientation": ["L", "F"]},
        {"PatientOrientation": ["LF", "FR"]},
        {"PatientOrientation": ""},
        {"PatientOrientation": ["A", "F"], "ViewPosition": "LL"},
    ],
)
def test_left_is_where_it_is_expected_or_unsaid(read, grey, elements):
    np.testing.assert_array_equal(read(dicom_bytes(grey, **elements)).pixels, read(dicom_bytes(grey)).pixels)


def test_a_film_from_the_side_is_known_by_its_orientation(read, grey):
    assert read(dicom_bytes(grey, PatientOrientation=["A", "F"])).is_lateral
    assert read(dicom_bytes(grey, PatientOrientation=["P", "F"], ViewPosition="L LAT")).is_lateral


@pytest.mark.parametrize("elements", [{"Modality": m} for m in ("CR", "DX", "RG", "DR", "")])
def test_radiographs_are_accepted(read, grey, elements):
    assert read(dicom_bytes(grey, **elements)).size == (WIDTH, HEIGHT)


def test_rgb_dicom_with_equal_channels(read, grey):
    np.testing.assert_array_equal(read(dicom_bytes(np.stack([grey] * 3, axis=2))).pixels, grey)


# --- what is refused


def _huge_dicom(grey, **elements):
    return dicom_bytes(grey, **{"Rows": 40000, "Columns": 40000} | elements)


REFUSED = {
    "empty": (lambda g: b"", "the file is empty (0 bytes)"),
    "text": (lambda g: b"The heart is not enlarged.\n" * 99, "not an image file (PNG, JPEG or DICOM expected)"),
    "zeros": (lambda g: bytes(1000), "not an image file"),
    "gif": (lambda g: b"GIF89a" + bytes(300), "not an image file"),
    "group-8-noise": (lambda g: b"\x08\x00" + random.Random(0).randbytes(500), ""),
    "dicom-mirrored": (
        lambda g: dicom_bytes(g, PatientOrientation=["R", "F"]),
        "DICOM patient orientation is R\\F, L\\F is expected of a frontal film",
    ),
    "dicom-upside-down": (lambda g: dicom_bytes(g, PatientOrientation=["L", "H"]), "orientation is L\\H"),
    "dicom-half-oriented": (lambda g: dicom_bytes(g, PatientOrientation="L"), "orientation is L, L\\F"),
    "png-cut": (lambda g: png_bytes(Image.fromarray(g))[:-20], "cut short"),
    "png-magic": (lambda g: b"\x89PNG\r\n\x1a\n", "cut short"),
    "png-rows": (lambda g: handmade_png(64, 64, (b"\0" + bytes(64)) * 30), "lacks a part of its picture"),
    "png-checksum": (lambda g: png_bytes(Image.fromarray(g)).replace(b"IDATx", b"IDATy"), "checksum"),
    "png-zero": (lambda g: handmade_png(0, 64), "has no pixels (0 x 64 pixels)"),
    "png-small": (lambda g: png_bytes(Image.fromarray(g[:31])), "too small (64 x 31 pixels"),
    "png-long": (lambda g: png_bytes(Image.new("L", (400, 39))), "too long and narrow"),
    "png-bomb": (lambda g: handmade_png(40000, 40000), "too large (40,000 x 40,000 pixels; at most 100 million"),
    "png-animated": (
        lambda g: png_bytes(Image.fromarray(g), save_all=True, append_images=[Image.fromarray(255 - g)]),
        "animated PNG",
    ),
    "jpeg-cut": (lambda g: jpeg_bytes(Image.fromarray(g))[:-2], "cut short"),
    "jpeg-magic": (lambda g: b"\xff\xd8\xff\xd9", "without a picture"),
    "jpeg-no-scan": (lambda g: jpeg_bytes(Image.fromarray(g)).split(b"\xff\xda")[0] + b"\xff\xd9", "JPEG"),
    "jpeg-small": (lambda g: jpeg_bytes(Image.fromarray(g[:, :20])), "too small (20 x 48 pixels"),
    "jpeg-bomb": (
        lambda g: jpeg_bytes(Image.fromarray(g)).replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 50000, 50000)),
        "too large (50,000 x 50,000",
    ),
    "dicom-ct": (lambda g: dicom_bytes(g, Modality="CT"), "DICOM modality is CT, a radiograph"),
    "dicom-mg": (lambda g: dicom_bytes(g, Modality="MG"), "DICOM modality is MG"),
    "dicom-name": (lambda g: dicom_bytes(g, Modality=PATIENT), "DICOM modality is an unknown term"),
    "dicom-class": (lambda g: dicom_bytes(g, omit=["Modality"], SOPClassUID=CTImageStorage), "names no modality"),
    "dicom-no-pixels": (lambda g: dicom_bytes(g, omit=["PixelData"]), "DICOM file without pixel data"),
    "dicom-no-rows": (lambda g: dicom_bytes(g, omit=["Rows"]), "without a valid Rows"),
    "dicom-rows-0": (lambda g: dicom_bytes(g, Rows=0), "has no pixels (64 x 0 pixels)"),
    "dicom-small": (lambda g: dicom_bytes(g[:, :8]), "too small (8 x 48 pixels"),
    "dicom-bomb": (_huge_dicom, "too large (40,000 x 40,000 pixels; at most 100 million"),
    "dicom-frames-bomb": (
        lambda g: _huge_dicom(g, Rows=1000, Columns=1000, NumberOfFrames=2000),
        "too large (1,000 x 1,000 pixels, 2,000 frames",
    ),
    "dicom-frames": (lambda g: dicom_bytes(g, NumberOfFrames=2), "DICOM file with 2 frames"),
    "dicom-cut": (lambda g: dicom_bytes(g)[:-100], "DICOM file is cut short"),
    "dicom-short": (lambda g: dicom_bytes(g, PixelData=bytes(1000)), "lacks a part of its pixel data"),
    "dicom-palette": (lambda g: dicom_bytes(g, PhotometricInterpretation="PALETTE COLOR"), "is PALETTE COLOR"),
    "dicom-bits": (lambda g: dicom_bytes(g.astype(np.uint32), bits=32), "32 bits stored in 32"),
    "dicom-few-bits": (lambda g: dicom_bytes(g, BitsStored=4), "4 bits stored in 8"),
    "dicom-samples": (lambda g: dicom_bytes(g, SamplesPerPixel=3), "3 samples per pixel"),
    "dicom-deflated": (lambda g: dicom_bytes(g, syntax="1.2.840.10008.1.2.1.99"), "deflated DICOM"),
    "dicom-mpeg": (
        lambda g: dicom_bytes(g, syntax="1.2.840.10008.1.2.4.102", PixelData=encapsulate([bytes(500)])),
        "DICOM transfer syntax is not supported",
    ),
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # from pydicom, on writing the fixture
@pytest.mark.parametrize("make, fragment", REFUSED.values(), ids=REFUSED)
def test_refusals(tmp_path, grey, make, fragment, capfd, caplog):
    path = tmp_path / "film.png"
    path.write_bytes(make(grey))
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        assert_refused(path, fragment)
    assert not caplog.records
    out, err = capfd.readouterr()
    assert not out and not err


def test_paths_that_are_no_files(tmp_path):
    assert_refused(tmp_path / "missing.png", "no such file")
    assert_refused(tmp_path, "is a directory")
    assert_refused(os.devnull, "is not a regular file")
    assert_refused("a" * 5000, "cannot be read")
    with pytest.raises(ImageError, match=r"^a\\nb\\x00.png: no such file$"):
        read_film("a\nb\0.png")


def test_no_permission(tmp_path, grey):
    path = tmp_path / "film.png"
    path.write_bytes(png_bytes(Image.fromarray(grey)))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user (root) may read everything")
    assert_refused(path, "no permission to read this file")


def test_permission_error_is_said(tmp_path, monkeypatch):
    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", deny)
    (tmp_path / "film.png").touch()
    assert_refused(tmp_path / "film.png", "no permission to read this file")


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "film.png"
    with open(path, "wb") as file:
        file.truncate(600 * 10**6)  # sparse: it takes no disk
    assert_refused(path, "file of 600 MB is too large (at most 537 MB)")


@pytest.mark.parametrize("make", [lambda g: handmade_png(40000, 40000, bytes(10**6)), _huge_dicom])
def test_refusing_a_bomb_takes_little_memory(tmp_path, grey, make):
    import pydicom  # noqa: F401 (not to be counted)

    path = tmp_path / "bomb"
    path.write_bytes(make(grey))
    tracemalloc.start()
    try:
        assert_refused(path, "too large")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


# --- files that are cut short, or noise


def whole_files(grey) -> dict[str, bytes]:
    noise = np.random.default_rng(4).integers(0, 256, (41, 43), dtype=np.uint8)  # odd: DICOM pads it by a byte
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "png": png_bytes(Image.fromarray(noise)),
        "png-rgb": png_bytes(Image.fromarray(grey).convert("RGB"), exif=exif),
        "jpeg": jpeg_bytes(Image.fromarray(noise), exif=exif),
        "jpeg-progressive": jpeg_bytes(Image.fromarray(noise).convert("RGB"), progressive=True),
        "dicom": dicom_bytes(noise, WindowCenter=100, WindowWidth=50),
        "dicom-bare": dicom_bytes(noise, preamble=False, syntax=ImplicitVRLittleEndian),
    }


@pytest.mark.parametrize("tolerant", [False, True], ids=["strict", "LOAD_TRUNCATED_IMAGES"])
@pytest.mark.parametrize("kind", ["png", "png-rgb", "jpeg", "jpeg-progressive", "dicom", "dicom-bare"])
def test_every_truncation_is_refused(tmp_path, grey, monkeypatch, kind, tolerant):
    # datasets and many scripts set this switch, which makes Pillow fill what is missing with grey
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = whole_files(grey)[kind]
    path = tmp_path / "film"
    path.write_bytes(data)
    assert read_film(path).pixels.any()
    lengths = {*range(0, len(data), 29), *range(len(data) - 40, len(data)), *range(130)}
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        assert_refused(path, "")


STARTS = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(128) + b"DICM", b"\x08\x00\x05\x00", b"\x02\x00\x00\x00UL"]
CALM = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def film_or_image_error(path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        film = read_film(path)
    except ImageError as error:
        assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
    else:
        assert film.pixels.dtype == np.uint8 and min(film.size) >= images.MIN_SIDE


@CALM
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=600))
def test_random_bytes(tmp_path, start, rest):
    film_or_image_error(tmp_path / "film", start + rest)


@CALM
@given(data=st.data(), kind=st.sampled_from(["png", "jpeg", "jpeg-progressive", "dicom", "dicom-bare"]))
def test_damaged_files(tmp_path, grey, data, kind):
    whole = bytearray(whole_files(grey)[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    film_or_image_error(tmp_path / "film", bytes(whole))


def test_import_is_light():
    code = "import sys, gaze_vlm.images; print({'pydicom', 'torch'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert answer.stdout.strip() == "set()"
