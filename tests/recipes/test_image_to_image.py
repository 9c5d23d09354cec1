"""Pictures from a picture: how it is read and fitted, and what is refused. What is drawn: test_pipeline_parity.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kolors_recipes.given_pictures import read_picture
from PIL import Image

from kolors_kernel import BuildContext, load_recipe
from kolors_kernel.cli import main
from kolors_kernel.errors import RecipeError

Write = Callable[..., Path]


def random_picture(height: int = 16, width: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def levels(image: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return what was read as the eight bits of the file, [H, W, 3]."""
    found: np.ndarray[Any, Any] = image[0].add(1).mul(127.5).permute(1, 2, 0).numpy()
    assert np.abs(found - found.round()).max() < 1e-3
    return found.round().astype(np.uint8)


def test_a_picture_of_the_size_is_read_bit_for_bit(tmp_path: Path) -> None:
    picture = random_picture()
    picture.save(tmp_path / "a.png")
    assert np.array_equal(levels(read_picture(tmp_path / "a.png", size=(16, 24))), np.asarray(picture))


def test_a_picture_of_another_size_is_scaled_to_cover_and_cut_around_the_middle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stripes = np.zeros((20, 60, 3), dtype=np.uint8)
    stripes[:, 20:40] = 255  # the middle third, which is what is left
    Image.fromarray(stripes).save(tmp_path / "a.png")
    with caplog.at_level("INFO"):
        found = levels(read_picture(tmp_path / "a.png", size=(40, 40)))
    assert found[:, 4:-4].min() > 250
    assert "60 x 20 pixels: scaled to cover 40 x 40 and cut around the middle" in caplog.text


def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    picture, exif = random_picture(), Image.Exif()
    exif[0x0112] = 6  # to be seen turned by a quarter, clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    found = levels(read_picture(tmp_path / "a.png", size=(24, 16)))
    assert np.array_equal(found, np.rot90(np.asarray(picture), k=-1))


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:4, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = levels(read_picture(tmp_path / "a.png", size=(8, 8)))
    assert found[:4].max() == 0 and found[4:].min() == 255


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK", "I;16", "PA"])
def test_pictures_of_every_mode_are_read(tmp_path: Path, mode: str) -> None:
    grey = np.repeat(np.linspace(0, 255, 8).round().astype(np.uint8)[None], 8, 0)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert("P" if mode == "PA" else mode)
    picture.save(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"))
    (file,) = tmp_path.iterdir()
    found = levels(read_picture(file, size=(8, 8)))
    assert found.shape == (8, 8, 3)
    assert np.abs(found.astype(int) - grey[..., None]).max() <= 1


def recipe(tiny: SimpleNamespace, file: Path, **settings: Any) -> dict[str, Any]:
    made: dict[str, Any] = tiny.drawing(type="image_to_image", image=str(file), prompts=["apple"], **settings)
    return made


def test_the_picture_and_the_strength_reach_what_is_drawn(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    random_picture().save(tmp_path / "a.png")
    Image.new("RGB", (24, 16), "red").save(tmp_path / "b.png")
    path = write(recipe(tiny, tmp_path / "a.png", strength=0.5))
    for index, change in enumerate([{}, {"image": str(tmp_path / "b.png")}, {"strength": 1.0}, {"seed": 3}]):
        load_recipe(path, change).build(BuildContext(out=tmp_path / str(index))).run()
    assert len({Image.open(tmp_path / str(index) / "000.png").tobytes() for index in range(4)}) == 4


def test_the_parts_may_be_held_one_at_a_time(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    random_picture().save(tmp_path / "a.png")
    path = write(recipe(tiny, tmp_path / "a.png", strength=0.5))
    for hold in ("all", "one"):
        load_recipe(path, {"hold": hold}).build(BuildContext(out=tmp_path / hold)).run()
    both = [np.asarray(Image.open(tmp_path / hold / "000.png")) for hold in ("all", "one")]
    assert np.array_equal(*both)
    report = json.loads((tmp_path / "one/report.json").read_text(encoding="utf-8"))
    assert list(report["phases"]) == [
        "load autoencoder",
        "encode picture",
        "load text_encoder",
        "encode",
        "load backbone",
        "denoise",
        "decode",
    ]


def test_a_strength_that_leaves_no_step_is_refused_before_anything_is_loaded(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_picture().save(tmp_path / "a.png")
    path = write(recipe(tiny, tmp_path / "a.png", strength=0.2))
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "strength 0.2 leaves none of 4 steps; give at least 0.25" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no picture"),
        (b"GIF89a nonsense", "is no picture"),
        ("half", "is no picture"),
        (None, "there is no file"),
    ],
)
def test_what_is_no_whole_picture_is_refused(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, content: Any, said: str
) -> None:
    file = tmp_path / "a.png"
    if content == "half":
        random_picture(64, 64).save(file)
        file.write_bytes(file.read_bytes()[:5000])
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(recipe(tiny, file))).build(BuildContext(out=tmp_path / "out"))
