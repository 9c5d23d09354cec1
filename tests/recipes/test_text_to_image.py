from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kolors_chatglm3.encoder import ChatGLM3Encoder
from kolors_recipes import parts, pictures
from kolors_recipes.pictures_job import requests_of
from kolors_recipes.whole_model import with_paths_of_the_model
from kolors_sdxl.autoencoder import SDXLVAEAutoencoder
from kolors_sdxl.backbone import SDXLUNetBackbone
from PIL import Image

from kolors_kernel import BuildContext, load_recipe
from kolors_kernel.cli import main
from kolors_kernel.component import RecipePath
from kolors_kernel.errors import Interrupted, RecipeError, RunError
from kolors_weights import hub

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


def test_parts_held_one_at_a_time_draw_the_same_and_are_never_together(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, together = dict[str, weakref.ref[Any]](), list[set[str]]()
    build = parts.build_model

    def watched(*arguments: Any, **settings: Any) -> dict[str, Any]:
        made = build(*arguments, **settings)
        alive.update({name: weakref.ref(part) for name, part in made.items()})
        together.append({name for name, part in alive.items() if part() is not None})
        return made

    path = write(tiny.drawing(batch=2))
    held = draw(path, tmp_path / "all")
    monkeypatch.setattr(parts, "build_model", watched)
    for one, other in zip(draw(path, tmp_path / "one", {"hold": "one"}), held, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1  # prompts in other batches: sums in another order
    assert together == [{"text_encoder"}, {"backbone"}, {"autoencoder"}]
    assert not [name for name, part in alive.items() if part() is not None]


def test_every_text_is_encoded_once_and_with_the_others(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, encode = list[list[str]](), ChatGLM3Encoder.encode

    def watched(self: ChatGLM3Encoder, prompts: Any) -> Any:
        asked.append(list(prompts))
        return encode(self, prompts)

    monkeypatch.setattr(ChatGLM3Encoder, "encode", watched)
    path = write(tiny.drawing(prompts=["a", "b", "a", "c"], negative_prompt="not", batch=3))
    draw(path, tmp_path / "all")
    draw(path, tmp_path / "one", {"hold": "one"})
    draw(path, tmp_path / "unguided", {"hold": "one", "guidance.scale": 1})
    assert asked == [["not", "a", "b"], ["c"], ["not", "a", "b", "c"], ["a", "b", "c"]]


def test_parts_are_frozen_once_and_heard_unless_told_not_to_be(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = list[object]()
    monkeypatch.setattr(SDXLUNetBackbone, "freeze", lambda self: frozen.append(self))
    monkeypatch.setattr(SDXLUNetBackbone, "report", lambda self: {"weights": "by hand"})
    path = write(tiny.drawing(prompts=["apple"]))
    for hold in ("all", "one"):
        draw(path, tmp_path / hold, {"hold": hold})
        assert json.loads((tmp_path / hold / "report.json").read_text())["parts"]["backbone"] == {"weights": "by hand"}
    assert len(frozen) == 2
    draw(path, tmp_path / "loose", {"freeze": False})
    sampled = tiny.train((1, 1))
    sampled["stages"][0]["samples"] = {"prompts": ["apple"], "every": 1, "height": 16, "width": 16}
    load_recipe(write(sampled, "train.yaml")).build(BuildContext(out=tmp_path / "train")).run()
    assert len(frozen) == 2


def test_the_report_says_what_each_phase_took(tiny: SimpleNamespace, write: Write, tmp_path: Path, capsys: Any) -> None:
    path = write(tiny.drawing())
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert (report["pictures"], report["drawn"], report["dtype"], report["device"]) == (3, 3, "float32", "cpu")
    phases = ["load text_encoder", "load autoencoder", "load backbone", "encode", "denoise", "decode"]
    assert list(report["phases"]) == phases
    assert all(0 < phase["memory_gib"] < 100 and phase["seconds"] >= 0 for phase in report["phases"].values())
    assert report["parts"]["autoencoder"]["decoding"] == "whole"
    said = capsys.readouterr().out
    for line in (*phases, "autoencoder: decoding: whole", "resident memory", "pictures: 3"):
        assert line in said


def test_prompts_come_from_one_setting_a_list_or_a_file(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff# fruit\n红苹果\n\n  a pear  \n", encoding="utf-8")
    listed = write(tiny.drawing(prompts=["x", "y"]))

    def asked(path: Path, **settings: Any) -> list[tuple[str, int]]:
        return [(each.prompt, each.seed) for each in requests_of(load_recipe(path, settings))]  # type: ignore[arg-type]

    assert asked(listed) == [("x", 0), ("y", 1)]
    assert asked(listed, prompt="z") == [("z", 0)]
    assert asked(listed, prompts=[], prompts_file=str(file), seed=5) == [("红苹果", 5), ("a pear", 6)]
    assert asked(listed, pictures_per_prompt=2, seeds=[9, 8, 9, 7]) == [("x", 9), ("x", 8), ("y", 9), ("y", 7)]
    with pytest.raises(RecipeError, match="2 pictures to draw and 3 seeds"):
        asked(listed, seeds=[1, 2, 3])
    with pytest.raises(RecipeError, match="prompts and prompts_file are both given"):
        asked(listed, prompts_file=str(file))
    for content, said in ((b"# none\n\n", "holds no prompt"), (b"\xff\xfe\x00", "cannot be read")):
        file.write_bytes(content)
        with pytest.raises(RecipeError, match=said):
            asked(listed, prompts=[], prompts_file=str(file))


def test_pictures_that_are_there_are_kept_until_something_they_come_from_changes(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_recipe(write(tiny.drawing())).backbone.build(  # type: ignore[attr-defined]
        BuildContext(), **specs_of(load_recipe(write(tiny.drawing())))
    ).save(tmp_path / "net")
    path, out = write(tiny.drawing(backbone={"type": "sdxl_unet", "path": str(tmp_path / "net")})), tmp_path / "out"

    def drawn(**settings: Any) -> int:
        draw(path, out, settings)
        return int(json.loads((out / "report.json").read_text(encoding="utf-8"))["drawn"])

    assert drawn() == 3
    sheet = (out / "contact_sheet.png").read_bytes()
    (out / "001.png").unlink()
    (out / "002.png").write_bytes((out / "002.png").read_bytes()[:200])
    with caplog.at_level("INFO"):
        assert drawn() == 2
    assert "1 of 3 pictures are there already" in caplog.text
    assert (out / "contact_sheet.png").read_bytes() == sheet
    assert drawn() == 0
    assert "denoise" not in json.loads((out / "report.json").read_text(encoding="utf-8"))["phases"]
    assert drawn(seed=1) == 3
    assert drawn() == 3
    (tmp_path / "net/config.json").touch()
    assert drawn() == 3


@pytest.mark.parametrize("hold", ["all", "one"])
def test_a_run_that_was_stopped_goes_on_with_the_pictures_that_are_missing(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: str
) -> None:
    path, out, decoded = write(tiny.drawing(batch=1, hold=hold)), tmp_path / "out", list[object]()
    decode = SDXLVAEAutoencoder.decode

    def stopped_at_the_third(self: SDXLVAEAutoencoder, latents: torch.Tensor) -> torch.Tensor:
        decoded.append(latents)
        if len(decoded) == 3:
            raise Interrupted(15, "what was finished is kept")
        return decode(self, latents)

    monkeypatch.setattr(SDXLVAEAutoencoder, "decode", stopped_at_the_third)
    with pytest.raises(Interrupted):
        draw(path, out)
    assert sorted(file.name for file in out.glob("*.png")) == ["000.png", "001.png"]
    whole = draw(path, tmp_path / "whole")
    assert all(np.array_equal(one, other) for one, other in zip(draw(path, out), whole, strict=True))
    assert len(decoded) == 3 + 3 + 1


def specs_of(recipe: Any) -> dict[str, Any]:
    return {"conditioning": recipe.text_encoder.spec(), "latents": recipe.autoencoder.spec()}


def test_large_pictures_are_made_smaller_on_the_contact_sheet() -> None:
    sheet = pictures.contact_sheet(torch.zeros(3, 3, 512, 1024), columns=2)
    assert sheet.size == (2 * (512 + 4) + 4, 2 * (256 + 4) + 4)


def test_a_whole_model_is_named_by_one_path(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    for folder in ("text_encoder", "autoencoder", "unet", "mine"):
        (tmp_path / folder).mkdir()
    recipe = tiny.drawing(model=".", backbone={"type": "sdxl_unet", "path": "mine"})
    for part in ("text_encoder", "autoencoder"):
        recipe[part] = {"type": recipe[part]["type"]}
    filled = with_paths_of_the_model({**recipe, "model": RecipePath(".", tmp_path)})
    assert filled["text_encoder"]["path"] == tmp_path / "text_encoder"
    assert filled["autoencoder"]["path"] == tmp_path / "autoencoder"  # as a training writes it
    assert filled["backbone"]["path"] == "mine"
    assert "model" not in filled
    hub = with_paths_of_the_model(
        {**recipe, "model": "hf://a/b", "text_encoder": {"type": "cached", "of": {"type": "x"}}}
    )
    assert hub["text_encoder"]["of"]["path"] == "hf://a/b/text_encoder"
    assert hub["autoencoder"]["path"] == "hf://a/b/vae"
    named = tiny.drawing(model=".")
    for part in ("text_encoder", "autoencoder", "backbone"):
        named[part] = {"type": named[part]["type"], "path": "unet"}
    with pytest.raises(RecipeError, match="but each of text_encoder, autoencoder, backbone names a path of its own"):
        load_recipe(write(named))


@pytest.mark.parametrize("name", ["text_to_image", "image_to_image", "inpaint"])
def test_the_recipes_of_the_released_model_are_checked_without_the_hub_and_take_a_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "find_on_hub", lambda *_: pytest.fail("checking asks the Hub"))
    recipe: Any = load_recipe(name)
    assert str(recipe.backbone.path).startswith("hf://Kwai-Kolors/Kolors")
    assert (recipe.solver.spacing, recipe.hold, recipe.text_encoder.weights) == ("leading", "one", "streamed")
    demo = Path(__file__).parents[2] / "plugins/kolors_demo"
    settings = {
        "model": str(demo / "weights"),
        "text_encoder.tokenizer": str(demo / "data/tokenizer.model"),
        "text_encoder.max_tokens": 40,
        "solver.steps": 2,
        "strength": 0.5,
        "height": 32,
        "width": 32,
        "prompt": "红苹果",
    }
    if name == "text_to_image":
        del settings["strength"]
    assert len(draw(name, tmp_path, settings)) == 1  # type: ignore[arg-type]


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
        ({"prompts": []}, "nothing to draw: give a prompt, prompts or a prompts_file"),
        ({"prompts": [], "prompts_file": "nowhere.txt"}, "there is no file or folder"),
        ({"hold": "none"}, "hold"),
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
    recipe = tiny.drawing(type="evaluate", height=16, width=16, batch=8, hold="one")
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
