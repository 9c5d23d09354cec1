"""Painting a part of a picture anew. That it is what diffusers paints: test_pipeline_parity.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kolors_recipes.from_picture import keeping
from kolors_recipes.given_pictures import read_mask
from PIL import Image

from kolors_kernel import BuildContext, discover, load_recipe
from kolors_kernel.errors import RecipeError
from kolors_kernel.values import LatentSpec

Write = Callable[..., Path]
SCHEDULE = {"type": "scaled_linear", "steps": 1100, "beta_end": 0.014}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A random picture of 16 x 24 pixels, and a mask whose right half is light."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    mask = np.zeros((16, 24), dtype=np.uint8)
    mask[:, 12:] = 200
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return {"image": str(tmp_path / "image.png"), "mask": str(tmp_path / "mask.png")}


def draw(path: Path, out: Path, **settings: Any) -> np.ndarray[Any, Any]:
    load_recipe(path, settings).build(BuildContext(out=out)).run()
    return np.asarray(Image.open(out / "000.png"))


def test_what_is_not_painted_anew_is_the_picture_bit_for_bit(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, files: dict[str, str]
) -> None:
    path, picture = write(tiny.drawing(type="inpaint", prompts=["apple"], **files)), Image.open(files["image"])
    found = draw(path, tmp_path / "pasted")
    assert np.array_equal(found[:, :12], np.asarray(picture)[:, :12])
    assert not np.array_equal(found[:, 12:], np.asarray(picture)[:, 12:])
    decoded = draw(path, tmp_path / "decoded", paste_back=False)
    assert not np.array_equal(decoded[:, :12], np.asarray(picture)[:, :12])
    assert np.array_equal(decoded[:, 12:], found[:, 12:])


def test_the_net_says_which_way_it_paints_and_the_report_too(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, files: dict[str, str]
) -> None:
    path = write(tiny.drawing(type="inpaint", prompts=["apple"], **files))
    plain: Any = load_recipe(path)
    specs = {"conditioning": plain.text_encoder.spec(), "latents": LatentSpec(4, 4, given=5)}
    plain.backbone.build(BuildContext(), **specs).save(tmp_path / "net")
    net = {"backbone": {"type": "sdxl_unet", "path": str(tmp_path / "net")}}
    said = {}
    for name, change in {"plain": {}, "net": net}.items():
        found = draw(path, tmp_path / name, **change)
        assert np.array_equal(found[:, :12], np.asarray(Image.open(files["image"]))[:, :12])
        said[name] = json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))["inpainting"]
    assert said == {
        "plain": "the rest is kept on the picture's own way",
        "net": "given the mask and the rest of the picture",
    }
    # The mask reaches an inpainting net: all else is the same, and the picture is pasted nowhere.
    Image.new("L", (24, 16), 255).save(tmp_path / "all.png")
    halves = draw(path, tmp_path / "half", paste_back=False, **net)
    wholes = draw(path, tmp_path / "whole", paste_back=False, mask=str(tmp_path / "all.png"), **net)
    assert not np.array_equal(halves, wholes)


@pytest.mark.parametrize(
    ("solver", "spacing"),
    [("euler", "leading"), ("euler", "trailing"), ("ddim", "trailing"), ("dpmpp_2m", "trailing")],
)
def test_keeping_is_putting_the_noised_picture_in_after_each_step(solver: str, spacing: str) -> None:
    """The same steps one at a time, blending in between as the usual loop does; second order has no single steps."""
    registry, ctx = discover(), BuildContext(dtype="float64")
    config: Any = registry.find("solver", solver).model_validate({"type": solver, "steps": 8, "spacing": spacing})
    built: Any = registry.find("noise_schedule", "scaled_linear").model_validate(SCHEDULE)
    schedule, random = built.build(ctx), torch.Generator().manual_seed(0)
    original, noise = torch.randn(2, 2, 4, 4, 4, generator=random, dtype=torch.float64)
    mask = (torch.rand(1, 1, 4, 4, generator=random) > 0.5).double()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def network(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        seen.append((x.clone(), timesteps))
        return torch.tanh(1.3 * x + 0.4 * x.roll(1, -1)) + 0.1 * torch.sin(timesteps / 90).view(-1, 1, 1, 1)

    kept = keeping(network, original, mask, schedule)
    found = config.build(ctx).solve(kept, noise, schedule, latents=original, strength=0.75)
    assert len(seen) == 6
    for x, timesteps in seen:
        blended = schedule.add_noise(original, noise, timesteps)
        torch.testing.assert_close(torch.where(mask > 0.5, x, blended), x, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.where(mask > 0.5, found, original), found, rtol=0, atol=1e-9)
    if solver != "dpmpp_2m":
        torch.testing.assert_close(
            found, blended_steps(network, original, noise, mask, schedule, seen), atol=1e-9, rtol=0
        )


def blended_steps(
    network: Any,
    original: torch.Tensor,
    noise: torch.Tensor,
    mask: torch.Tensor,
    schedule: Any,
    seen: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Take the first-order steps between the timesteps seen, and blend after each."""
    timesteps = [float(times[0]) for _, times in list(seen)]
    x = schedule.add_noise(original, noise, torch.full((2,), timesteps[0], dtype=torch.float64))
    for here, there in zip(timesteps, [*timesteps[1:], -1.0], strict=True):
        now, then = (torch.full((2,), at, dtype=torch.float64) for at in (here, there))
        signal, scale = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(now))
        eps = network(x, now)
        picture = (x - scale * eps) / signal
        signal, scale = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(then))
        x = torch.where(mask > 0.5, signal * picture + scale * eps, signal * original + scale * noise)
    return x


def test_a_mask_is_cut_at_half_of_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 127, 128, 255]], dtype=np.uint8)).save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png", of=tmp_path / "mask.png", size=(1, 4))
    assert found.tolist() == [[[[0, 0, 1, 1]]]]


def test_a_mask_in_colour_and_one_with_transparency_are_read_by_their_lightness(tmp_path: Path) -> None:
    pixels = np.zeros((1, 4, 4), dtype=np.uint8)
    pixels[0] = [[255, 255, 255, 255], [255, 255, 255, 0], [0, 0, 0, 255], [0, 255, 0, 255]]
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png", of=tmp_path / "mask.png", size=(1, 4))
    assert found.tolist() == [[[[1, 0, 0, 1]]]]


def test_a_mask_is_scaled_and_cut_as_its_picture_is_and_stays_sharp(tmp_path: Path) -> None:
    mask = np.zeros((30, 90), dtype=np.uint8)
    mask[:, 30:45] = 255  # the left half of the middle third
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png", of=tmp_path / "mask.png", size=(16, 16))[0, 0]
    assert found[:, :8].min() == 1 and found[:, 8:].max() == 0


@pytest.mark.parametrize(
    ("size", "light", "said"),
    [
        ((10, 10), 255, r"the mask .* is 10 x 10 pixels and the picture .* 24 x 16"),
        ((24, 16), 100, "is dark everywhere: nothing would be painted anew"),
    ],
)
def test_a_mask_that_does_not_fit_or_is_dark_is_refused(
    tiny: SimpleNamespace,
    write: Write,
    tmp_path: Path,
    files: dict[str, str],
    size: tuple[int, int],
    light: int,
    said: str,
) -> None:
    Image.new("L", size, light).save(tmp_path / "mask.png")
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(tiny.drawing(type="inpaint", **files))).build(BuildContext(out=tmp_path / "out"))
