from __future__ import annotations

import struct
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from fractions import Fraction
from functools import lru_cache, partial
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kolors_zarr.pictures.decoding import MOST_PIXELS, decode, probe
from kolors_zarr.pictures.fitting import anywhere, centre, cover, fill
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kolors_kernel.errors import DataError

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
KEYS = st.integers(0, 2**64 - 1)


def scene(height: int, width: int) -> Pixels:
    """Return something like a photograph: large soft shapes, finer ones on top, and a little noise."""
    random = np.random.default_rng(height * 10_000 + width)
    sums = np.full((height, width, 3), 128.0)
    for grain, strength in ((64, 40), (16, 20), (4, 8)):
        coarse = random.uniform(0, 255, (height // grain + 2, width // grain + 2, 3)).astype(np.uint8)
        soft = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        sums += (np.asarray(soft, np.float64) - 128) * strength / 128
    return np.clip(sums + random.normal(0, 2, sums.shape), 0, 255).astype(np.uint8)


def encoded(picture: Image.Image | Pixels, format: str = "JPEG", **settings: Any) -> bytes:
    file = BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, format, **settings)
    return file.getvalue()


def by_pillow(data: bytes) -> Pixels:
    return np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))


def difference(one: Pixels, other: Pixels) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def filled(data: bytes, bucket: Size, **settings: Any) -> tuple[Pixels, Size]:
    """Fill the middle row of a batch, and look that its neighbours are left alone."""
    batch = np.full((3, *bucket, 3), 77, np.uint8)
    corner = fill(data, batch[1], where="x", **{"corner": centre, **settings})
    assert (batch[::2] == 77).all()
    return batch[1], corner


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"quality": 30},
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"progressive": True},
        {"optimize": True},
    ],
)
def test_a_jpeg_decodes_to_the_very_pixels_that_pillow_gives(settings: dict[str, Any]) -> None:
    data = encoded(scene(45, 61), **settings)
    assert np.array_equal(decode(data, where=""), by_pillow(data))
    assert np.array_equal(decode(memoryview(data), where=""), by_pillow(data))
    assert probe(data, where="") == probe(memoryview(data), where="") == (45, 61)


@pytest.mark.parametrize(
    ("format", "modes"),
    [
        ("JPEG", ["L", "RGB"]),
        ("PNG", ["1", "L", "P", "RGB", "LA", "RGBA"]),
        ("WEBP", ["L", "P", "RGB", "RGBA"]),
        ("GIF", ["1", "L", "P", "RGB"]),
        ("BMP", ["1", "L", "P", "RGB", "RGBA"]),
    ],
)
def test_opaque_pictures_of_every_mode_come_out_as_pillow_converts_them(format: str, modes: list[str]) -> None:
    for mode in modes:
        image = Image.fromarray(scene(20, 30)).convert(mode)
        data = encoded(image, format, **({"lossless": True} if format == "WEBP" else {}))
        assert np.array_equal(decode(data, where=""), by_pillow(data))
        assert probe(data, where="") == (20, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_picture_is_turned_as_its_camera_held_it(orientation: int, format: str, order: str) -> None:
    exif = Image.Exif()
    exif.endian = order  # type: ignore[assignment]
    exif[0x010E], exif[0x0112], exif[0x0131] = "before", orientation, "after"
    assert exif.tobytes()[6:8] == (b"II" if order == "<" else b"MM")
    data = encoded(scene(24, 40), format, exif=exif.tobytes())
    expected = by_pillow(data)
    assert np.array_equal(decode(data, where=""), expected)
    assert probe(data, where="") == expected.shape[:2]


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01"]
)
def test_a_damaged_exif_block_turns_nothing(exif: bytes) -> None:
    plain = encoded(scene(10, 16))
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert np.array_equal(decode(data, where=""), decode(plain, where=""))


def test_what_is_transparent_is_white() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (32, 32, 4)).astype(np.uint8)
    share = rgba[..., 3:] / 255
    expected = rgba[..., :3] * share + 255 * (1 - share)
    for data in (
        encoded(Image.fromarray(rgba), "PNG"),
        encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True),
    ):
        found = decode(data, where="")
        assert np.abs(found - expected).max() <= 1
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    grey = Image.new("LA", (4, 4), (100, 0))
    coloured = Image.new("RGB", (4, 4), (1, 2, 3))
    assert decode(encoded(palette, "PNG", transparency=0), where="")[0, :2].tolist() == [[255] * 3, [9] * 3]
    assert decode(encoded(palette, "GIF", transparency=0), where="")[0, :2].tolist() == [[255] * 3, [9] * 3]
    assert (decode(encoded(grey, "PNG"), where="") == 255).all()
    assert (decode(encoded(coloured, "PNG", transparency=(1, 2, 3)), where="") == 255).all()


def test_inks_of_a_cmyk_jpeg_are_read_inverted_only_where_adobe_wrote_them() -> None:
    data = encoded(Image.fromarray(scene(32, 48)).convert("CMYK"), quality=95)
    at = data.index(b"\xff\xee")
    plain = data[:at] + data[at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0] :]
    stored = simplejpeg.decode_jpeg(data, colorspace="CMYK").astype(float)
    for each, inks in ((data, 255 - stored), (plain, stored)):
        expected = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
        assert np.abs(decode(each, where="") - expected).max() <= 1
        assert probe(each, where="") == (32, 48)


def test_a_flaw_that_viewers_overlook_does_not_cost_the_picture() -> None:
    good = encoded(scene(24, 24))
    tables = good.index(b"\xff\xc4")  # after the frame header
    flawed = good[:tables] + b"\0\0\0" + good[tables:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(flawed)
    assert np.array_equal(decode(flawed, where=""), decode(good, where=""))
    padded = good[:2] + b"\xff\xff" + good[2:]  # fill bytes before a marker
    assert np.array_equal(decode(padded, where=""), decode(good, where=""))


# ---------------------------------------------------------------- what is refused


def png(width: int, height: int, bits: int, colour: int, rows: bytes = b"") -> bytes:
    """Return a PNG written by hand, of any size and depth."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def jpeg(bits: int = 8, height: int = 16, width: int = 16) -> bytes:
    """Return a JPEG whose frame header was changed."""
    data = encoded(scene(16, 16))
    at = data.index(b"\xff\xc0") + 4
    return data[:at] + struct.pack(">BHH", bits, height, width) + data[at + 5 :]


def bmp(width: int, height: int) -> bytes:
    data = bytearray(encoded(scene(4, 4), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def animated(format: str) -> bytes:
    return encoded(scene(8, 8), format, save_all=True, append_images=[Image.fromarray(scene(8, 8)[::-1])], duration=9)


REFUSED = {
    "nothing": (b"", "neither JPEG nor PNG"),
    "text": (b"not a picture", "neither JPEG nor PNG"),
    "tiff": (encoded(scene(8, 8), "TIFF"), "neither JPEG nor PNG"),
    "empty-jpeg": (jpeg(height=0), "no pixels: its size is 0 x 16"),
    "empty-png": (png(0, 4, 8, 2), "says that it has no pixels"),
    "deep-jpeg": (jpeg(bits=12), r"more than 8 bits a channel \(12\)"),
    "deep-grey-png": (png(2, 2, 16, 0, bytes(10)), r"more than 8 bits a channel \(16\)"),
    "deep-colour-png": (png(2, 2, 16, 2, bytes(26)), r"more than 8 bits a channel \(16\)"),
    "animated-gif": (animated("GIF"), "animated, with 2 frames"),
    "animated-png": (animated("PNG"), "animated, with 2 frames"),
    "animated-webp": (animated("WEBP"), "animated, with 2 frames"),
    "jpeg-bomb": (jpeg(height=65_000, width=65_000), "65000 x 65000 pixels, and more than 134217728"),
    "png-bomb": (png(200_000, 200_000, 8, 2), "200000 x 200000 pixels, and more than"),
    "bmp-bomb": (bmp(2**30, 2**30), "1073741824 x 1073741824 pixels, and more than"),
    "jpeg-header-cut": (encoded(scene(16, 16))[:150], "cannot be decoded"),
    "webp-cut": (encoded(scene(16, 16), "WEBP")[:25], "cannot be decoded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_that_cannot_be_used_is_refused_by_its_header_with_the_reason(name: str) -> None:
    data, reason = REFUSED[name]
    for ask in (probe, decode):
        with pytest.raises(DataError, match="the picture of sample 'a' cannot be decoded: ") as caught:
            ask(data, where="sample 'a'")
        assert caught.match(reason)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_picture_that_was_cut_off_is_refused(format: str) -> None:
    data = encoded(scene(40, 40), format)
    with pytest.raises(DataError, match="the picture of z cannot be decoded"):
        decode(data[: len(data) * 2 // 3], where="z")


def test_a_large_picture_is_not_warned_about() -> None:
    # More than Pillow's own limit of 89 million pixels warns at, and no more than ours.
    header = png(11_000, 12_000, 8, 0)
    assert MOST_PIXELS >= 11_000 * 12_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe(header, where="") == (12_000, 11_000)


SEEDS = st.sampled_from(
    [
        encoded(scene(16, 24), format, **settings)
        for format, settings in (
            ("JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"}),
            ("JPEG", {"progressive": True}),
            ("PNG", {}),
            ("WEBP", {"quality": 50}),
            ("GIF", {}),
            ("BMP", {}),
        )
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    data=SEEDS,
    at=st.lists(st.floats(0, 1, exclude_max=True), max_size=4),
    value=st.integers(0, 255),
    end=st.floats(0, 1),
)
def test_damage_of_any_kind_is_a_data_error_or_overlooked(data: bytes, at: list[float], value: int, end: float) -> None:
    damaged = bytearray(data)
    for place in at:
        damaged[int(place**3 * len(data))] = value  # headers first
    if end < 0.2:
        del damaged[int(5 * end * len(data)) :]
    try:
        size = probe(bytes(damaged), where="x")
        assert decode(bytes(damaged), where="x").shape == (*size, 3)
    except DataError as error:
        assert "the picture of x cannot be decoded" in str(error)


# ---------------------------------------------------------------- scaled decoding


@lru_cache(maxsize=256)
def flat_jpeg(height: int, width: int, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.new("RGB", (width, height), (60, 120, 180)), exif=exif.tobytes())


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 500), st.integers(1, 500), st.integers(1, 400), st.integers(1, 400), st.sampled_from([1, 3, 6, 8])
)
@example(400, 400, 50, 50, 1)
@example(401, 399, 101, 100, 6)
def test_a_scaled_decode_is_the_smallest_that_covers_what_is_needed(
    height: int, width: int, tall: int, wide: int, orientation: int
) -> None:
    data = flat_jpeg(height, width, orientation)
    size = (width, height) if orientation >= 5 else (height, width)
    wanted = min(tall, size[0]), min(wide, size[1])
    found = decode(data, where="", at_least=(tall, wide))
    eighths = [tuple(-(-side * part // 8) for side in size) for part in range(1, 9)]
    covers = next(each for each in eighths if each[0] >= wanted[0] and each[1] >= wanted[1])
    assert found.shape[:2] == (covers if covers in eighths[:6] else size)
    assert found.shape[0] >= wanted[0] and found.shape[1] >= wanted[1]
    assert np.abs(found.astype(int) - (60, 120, 180)).max() <= 4


def test_decoding_goes_straight_into_a_buffer_of_the_right_size_and_no_other() -> None:
    data = encoded(scene(64, 48))
    row = np.zeros((64, 48, 3), np.uint8)
    assert decode(data, where="", into=row) is row
    assert np.array_equal(row, by_pillow(data))
    half = np.zeros((32, 24, 3), np.uint8)
    assert decode(data, where="", at_least=(32, 24), into=half) is half
    assert np.array_equal(half, simplejpeg.decode_jpeg(data, min_height=32, min_width=24))
    small = np.zeros((31, 24, 3), np.uint8)
    assert decode(data, where="", into=small) is not small
    strided = np.zeros((64, 96, 3), np.uint8)[:, ::2]
    found = decode(data, where="", into=strided)
    assert found is not strided and np.array_equal(found, row)


# ---------------------------------------------------------------- fitting


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2048), st.integers(1, 2048), KEYS)
def test_a_scaled_picture_just_covers_its_bucket_and_the_crop_lies_inside(
    height: int, width: int, tall: int, wide: int, key: int
) -> None:
    scaled = cover((height, width), (tall, wide))
    scale = max(Fraction(tall, height), Fraction(wide, width))
    assert all(abs(side * scale - got) <= Fraction(1, 2) for side, got in zip((height, width), scaled, strict=True))
    assert scaled[0] == tall or scaled[1] == wide
    for corner in (centre(scaled, (tall, wide)), anywhere(scaled, (tall, wide), key=key)):
        assert 0 <= corner[0] <= scaled[0] - tall
        assert 0 <= corner[1] <= scaled[1] - wide
    margins = [much - few for much, few in zip(scaled, (tall, wide), strict=True)]
    middle = centre(scaled, (tall, wide))
    assert all(0 <= margin - 2 * at <= 1 for margin, at in zip(margins, middle, strict=True))


def test_every_position_of_a_crop_is_equally_likely() -> None:
    keys = [(2 * part + 1) * 2**63 // 700 for part in range(700)]
    found = Counter(anywhere((70, 64), (64, 64), key=key) for key in keys)
    assert found == {(top, 0): 100 for top in range(7)}
    assert anywhere((64, 70), (64, 64), key=2**64 - 1) == (0, 6)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("key", [0, 2**62, 2**63, 2**64 - 1])
def test_nothing_is_resampled_where_the_picture_only_has_to_be_cropped(format: str, key: int) -> None:
    for size in ((64, 48), (64, 90), (111, 48)):
        data = encoded(scene(*size), format)
        pixels, (top, left) = filled(data, (64, 48), corner=partial(anywhere, key=key))
        assert np.array_equal(pixels, by_pillow(data)[top : top + 64, left : left + 48])


def fully(data: bytes, bucket: Size, corner: Size) -> Pixels:
    """Return what Pillow makes of a picture with no short cut: all of it decoded, scaled and then cropped."""
    whole = Image.fromarray(by_pillow(data))
    tall, wide = cover((whole.height, whole.width), bucket)
    top, left = corner
    scaled = whole.resize((wide, tall), Image.Resampling.LANCZOS)
    return np.asarray(scaled)[top : top + bucket[0], left : left + bucket[1]]


@pytest.mark.parametrize("size", [(70, 100), (64, 64), (130, 90), (333, 250), (1000, 700)])
@pytest.mark.parametrize("bucket", [(64, 64), (96, 64), (64, 128), (200, 120)])
def test_only_the_crop_is_resampled_and_comes_out_as_of_the_whole(size: Size, bucket: Size) -> None:
    data = encoded(scene(*size), "PNG")
    for key in (0, 2**63, 2**64 - 1):
        pixels, corner = filled(data, bucket, corner=partial(anywhere, key=key))
        assert difference(pixels, fully(data, bucket, corner)) < 0.5


@pytest.mark.parametrize("size", [(300, 200), (400, 400), (640, 427), (900, 1300)])
def test_a_jpeg_decoded_small_looks_like_one_decoded_whole(size: Size) -> None:
    data = encoded(scene(*size), quality=92)
    pixels, corner = filled(data, (128, 128))
    assert difference(pixels, fully(data, (128, 128), corner)) < 2.5  # of 255; a bicubic filter makes it 1


def test_the_reported_crop_is_where_the_pixels_come_from() -> None:
    # A picture that says where it is: red tells the row, green the column.
    rows, columns = np.mgrid[0:200, 0:250].astype(np.uint8)
    data = encoded(np.stack([rows, columns, rows * 0], axis=-1), "PNG")
    for key in (0, 2**62, 2**63, 2**64 - 1):
        pixels, (top, left) = filled(data, (100, 100), corner=partial(anywhere, key=key))
        assert cover((200, 250), (100, 100)) == (100, 125)
        assert abs(pixels[50, 50, 0] - 2 * (50 + top)) <= 2
        assert abs(pixels[50, 50, 1] - 2 * (50 + left)) <= 2


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_jpeg_is_fitted_as_it_is_seen(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene(200, 320), exif=exif.tobytes(), quality=95)
    pixels, corner = filled(data, (64, 96))
    assert difference(pixels, fully(data, (64, 96), corner)) < 2.5


def test_reading_pictures_and_choosing_buckets_needs_no_torch() -> None:
    code = "import sys, kolors_zarr.pictures.fitting, kolors_zarr.buckets.assign; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
