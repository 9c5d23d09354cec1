from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kolors_recipes import pictures
from PIL import Image

from kolors_kernel import BuildContext, load_recipe
from kolors_kernel.cli import main
from kolors_kernel.errors import RecipeError, RunError

Write = Callable[..., Path]


def draw(path: Path, out: Path, settings: dict[str, Any] | None = None) -> list[np.ndarray[Any, Any]]:
    load_recipe(path, settings or {}).build(BuildContext(out=out)).run()
    return [np.asarray(Image.open(file)) for file in sorted(out.glob("[0-9]*.png"))]


def test_every_prompt_gets_a_picture_of_the_size_that_says_how_it_was_made(
    tiny: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    images = draw(write(tiny.drawing(seed=5)), tmp_path / "out")
    assert [image.shape for image in images] == [(16, 24, 3)] * 3
    with Image.open(tmp_path / "out/001.png") as picture:
        text = picture.text  # type: ignore[attr-defined]
    assert (text["prompt"], text["seed"]) == ("a red apple", "6")
    again = json.loads(text["recipe"])
    assert load_recipe(write(again, "again.yaml")) == load_recipe(write(tiny.drawing(seed=5)))
    with Image.open(tmp_path / "out/contact_sheet.png") as sheet:
        assert sheet.size == (3 * 28 + 4, 20 + 4)


def test_the_written_recipe_draws_the_same_pictures_bit_for_bit(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tiny.drawing())
    assert main(["run", str(path), "--out", str(tmp_path / "a"), "--set", "seed=3"]) == 0
    assert str(tmp_path / "a") in capsys.readouterr().out
    assert main(["run", str(tmp_path / "a/recipe.yaml"), "--out", str(tmp_path / "b")]) == 0
    for name in ("000.png", "001.png", "002.png", "contact_sheet.png", "recipe.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_seed_means_the_same_noise_in_any_batch(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    path = write(tiny.drawing())
    together, alone = draw(path, tmp_path / "a"), draw(path, tmp_path / "b", {"batch": 1})
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1  # sums in another order, rounded to 8 bits
    shifted = draw(path, tmp_path / "c", {"seed": 1, "prompts": ["a red apple"]})
    assert np.abs(shifted[0].astype(int) - together[1]).max() <= 1


def test_the_prompt_the_negative_prompt_and_the_scale_reach_the_picture(
    tiny: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    path, drawn = write(tiny.drawing(prompts=["apple"])), list[bytes]()
    changes = [{}, {"prompts": ["pear"]}, {"negative_prompt": "blue"}, {"guidance.type": "classifier_free"}]
    changes[3]["guidance.scale"] = 1.0
    for index, change in enumerate(changes):
        drawn.append(draw(path, tmp_path / str(index), change)[0].tobytes())
    assert len(set(drawn)) == 4


def test_any_schedule_and_solver_swap_by_one_line(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    path = write(tiny.drawing(prompts=["apple"]))
    for index, change in enumerate(({"schedule.type": "cosine"}, {"solver.type": "dpmpp_2m"}, {"solver.type": "ddim"})):
        (image,) = draw(path, tmp_path / str(index), change)
        assert image.std() > 0


@pytest.mark.parametrize("prompt", ["", "字" * 10_000, "a\x00b\x07\u200b\ufeffc", "[gMASK] sop <|user|> </s>"])
def test_odd_prompts_are_drawn_and_long_ones_cut_aloud(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, prompt: str
) -> None:
    path = write(tiny.drawing(prompts=["x"]))
    if len(prompt) > 1000:
        with pytest.warns(UserWarning, match=r"are cut.*max_tokens"):
            assert len(draw(path, tmp_path / "out", {"prompts": [prompt]})) == 1
    else:
        assert len(draw(path, tmp_path / "out", {"prompts": [prompt]})) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"height": 30}, r"size 30 x 24 is not a multiple of 4 pixels; try 32 x 24"),
        ({"width": 0}, "width"),
        ({"prompts": []}, "prompts"),
        ({"prompts": "a cat"}, "prompts"),
        ({"solver.stepps": 3}, "did you mean 'steps'"),
        ({"text_encoder.path": "nowhere"}, "there is no file or folder"),
        ({"guidance.scale": "x"}, r"guidance\.scale"),
    ],
)
def test_a_wrong_setting_is_refused_when_the_recipe_is_read(
    tiny: SimpleNamespace, write: Write, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(tiny.drawing()), settings)


def test_widths_that_do_not_fit_are_refused_before_anything_is_built(
    tiny: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    job = load_recipe(write(tiny.train((1, 1)), "train.yaml")).build(BuildContext(out=tmp_path))
    job.run()
    wider = {**tiny.text_encoder, "architecture": {**tiny.text_encoder["architecture"], "hidden_size": 48}}
    trained = {"type": "sdxl_unet", "path": str(tmp_path / "weights/backbone")}
    recipe = tiny.drawing(text_encoder=wider, backbone=trained)
    with pytest.raises(RecipeError, match=r"expects conditioning 32 wide.*gives 48.*context_projection: new"):
        load_recipe(write(recipe))
    recipe["backbone"] = {**trained, "context_projection": "new"}
    assert len(draw(write(recipe), tmp_path / "out")) == 3


def test_a_full_disk_is_reported_and_leaves_no_half_picture(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, file: Path, **_: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(pictures.Image.Image, "save", full)
    with pytest.raises(RunError, match=r"000\.png could not be written: .*No space left"):
        draw(write(tiny.drawing()), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_graph_prints_the_steps_the_ports_and_the_parts(
    tiny: SimpleNamespace, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["graph", str(write(tiny.drawing()))]) == 0
    drawing = capsys.readouterr().out
    for word in ("encode_prompts", "denoise", "decode", "conditioning: Conditioning", "guidance"):
        assert word in drawing
    cached = tiny.train()
    cached["stages"][1]["data"]["pictures"] = "latents"
    assert main(["graph", str(write(cached))]) == 0
    concept, quality = capsys.readouterr().out.split("quality")
    assert "encode_images" in concept and "encode_images" not in quality
    assert "autoencoder" in concept and "autoencoder" not in quality


def test_evaluate_scores_the_pictures_of_a_prompt_set(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    recipe = tiny.drawing(type="evaluate", height=16, width=16, batch=8)
    recipe["prompts"] = {"type": "emoji_prompts", "per_part": 3, "groups": ["food-drink"]}
    data = {**tiny.fruit(), "filters": [{"type": "tags", "where": {"group": ["food-drink"]}}]}
    recipe["metric"] = {"type": "emoji_hits", "data": data, "groups": ["food-drink"]}
    job = load_recipe(write(recipe)).build(BuildContext(out=tmp_path / "out"))
    assert job.run() == {"pictures": 18}
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    for part in ("train", "held_out", "control"):
        for language in ("en", "zh"):
            assert set(report[part][language]) == {"concept", "style", "n"}
            assert report[part][language]["n"] == 3
