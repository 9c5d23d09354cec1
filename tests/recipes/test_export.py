from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kolors_recipes.export import UNFINISHED
from kolors_recipes.export_config import Export
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from kolors_kernel import BuildContext, load_recipe
from kolors_kernel.cli import main
from kolors_kernel.errors import RecipeError, RunError, WeightsError
from kolors_kernel.registry import discover
from kolors_kernel.values import ConditioningSpec, LatentSpec

quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
RELEASED = {"type": "scaled_linear", "steps": 1100, "beta_end": 0.014}
FOLDERS = ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]
STEM = "diffusion_pytorch_model.safetensors"
FILES = ("text_encoder/model.safetensors", f"unet/{STEM}", f"vae/{STEM}")


@pytest.fixture
def recipe(tiny: SimpleNamespace) -> dict[str, Any]:
    return {"type": "export", **tiny.model, "schedule": RELEASED}


def export(recipe: dict[str, Any], out: Path) -> dict[str, float]:
    made = Export.model_validate(recipe)
    return dict(made.build(BuildContext(dtype=made.dtype, out=out)).run())


def from_folder(folder: Path, tiny: SimpleNamespace, **settings: Any) -> dict[str, Any]:
    """A model whose parts are those that were exported."""
    places = {"text_encoder": "text_encoder", "autoencoder": "vae", "backbone": "unet"}
    paths = {part: {"type": tiny.model[part]["type"], "path": str(folder / name)} for part, name in places.items()}
    return {**paths, **settings}


def test_the_folders_are_those_of_the_release(recipe: dict[str, Any], tmp_path: Path) -> None:
    figures = export(recipe, tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["model_index.json", *FOLDERS]
    states = [load_file(tmp_path / "out" / file) for file in FILES]
    assert {tensor.dtype for state in states for tensor in state.values()} == {torch.float16}
    assert figures["parameters"] == sum(tensor.numel() for state in states for tensor in state.values())
    scheduler = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert scheduler["num_train_timesteps"] == 1100 and scheduler["prediction_type"] == "epsilon"
    encoder, tokenizer = (tmp_path / "out" / name / "tokenizer.model" for name in ("text_encoder", "tokenizer"))
    assert encoder.read_bytes() == tokenizer.read_bytes()


def test_what_was_exported_is_exported_again_bit_for_bit(
    recipe: dict[str, Any], tiny: SimpleNamespace, tmp_path: Path
) -> None:
    export(recipe, tmp_path / "one")
    export({**from_folder(tmp_path / "one", tiny), "type": "export", "schedule": RELEASED}, tmp_path / "two")
    names = [str(file.relative_to(tmp_path / "one")) for file in (tmp_path / "one").rglob("*") if file.is_file()]
    assert len(names) == 11
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_the_shipped_recipe_takes_a_model_by_its_folder(recipe: dict[str, Any], tmp_path: Path) -> None:
    export(recipe, tmp_path / "one")
    assert main(["run", "export", "--set", f"model={tmp_path / 'one'}", "--out", str(tmp_path / "two")]) == 0
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert main(["run", "export", "--set", f"model={tmp_path / 'one'}", "--out", str(tmp_path / "two")]) == 2


@quiet
def test_diffusers_loads_it_and_draws_the_picture_that_is_drawn_here(
    recipe: dict[str, Any], write: Any, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    from diffusers import KolorsPipeline

    # The peer always encodes 256 slots; a picture of pure grey would tell nothing.
    export({**recipe, "text_encoder": {**tiny.text_encoder, "max_tokens": 256}}, tmp_path / "out")
    pipeline = KolorsPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(3))[None]
    settings = {"height": 32, "width": 48}
    theirs = pipeline(
        "一个红苹果", **settings, num_inference_steps=5, guidance_scale=3.0, latents=noise.clone(), output_type="np"
    ).images[0]
    drawn = tiny.drawing(
        **from_folder(tmp_path / "out", tiny),
        **settings,
        solver={"type": "euler", "steps": 5, "spacing": "leading"},
        guidance={"type": "classifier_free", "scale": 3.0},
        prompts=["一个红苹果"],
        seed=3,
    )
    load_recipe(write(drawn)).build(BuildContext(out=tmp_path / "drawn")).run()
    ours = np.asarray(Image.open(tmp_path / "drawn/000.png"), dtype=np.float64)
    assert theirs.shape == (32, 48, 3) and theirs.std() > 0.02
    assert np.abs(ours - 255 * theirs).max() < 0.5 + 0.01  # a PNG's rounding


def inpainting(tiny: SimpleNamespace, folder: Path) -> dict[str, Any]:
    """Return the settings of a U-Net of nine input channels, written into the folder."""
    config = discover().find("backbone", "sdxl_unet").model_validate(tiny.backbone)
    latents = LatentSpec(channels=4, downscale=4, given=5)
    config.build(BuildContext(), conditioning=ConditioningSpec(40, 32, 32), latents=latents).save(folder)  # type: ignore[attr-defined]
    return {"type": "sdxl_unet", "path": str(folder)}


def test_an_inpainting_net_is_exported(recipe: dict[str, Any], tiny: SimpleNamespace, tmp_path: Path) -> None:
    export({**recipe, "backbone": inpainting(tiny, tmp_path / "net")}, tmp_path / "out")
    assert json.loads((tmp_path / "out/unet/config.json").read_text())["in_channels"] == 9
    written = load_file(tmp_path / f"out/unet/{STEM}")["conv_in.weight"]
    assert torch.equal(written, load_file(tmp_path / f"net/{STEM}")["conv_in.weight"].half())


def test_a_net_that_predicts_v_says_so(recipe: dict[str, Any], tiny: SimpleNamespace, tmp_path: Path) -> None:
    export({**recipe, "backbone": {**tiny.backbone, "predicts": "v"}}, tmp_path / "out")
    assert (
        json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())["prediction_type"] == "v_prediction"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "schedule", [{"type": "scaled_linear"}, {"type": "extended_scaled_linear"}, {"type": "linear"}]
)
def test_a_schedule_is_exported_as_the_same_curve(schedule: dict[str, Any]) -> None:
    from diffusers import EulerDiscreteScheduler

    ours: Any = discover().find("noise_schedule", schedule["type"]).model_validate(schedule)
    theirs = EulerDiscreteScheduler(**ours.released_form()).alphas_cumprod.double()
    assert torch.allclose(ours.build(BuildContext()).alpha_bar, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "sigmoid", "rectified_flow", "zero_terminal_snr", "log_snr_shift"])
def test_a_schedule_without_a_released_form_is_refused_with_the_reason(recipe: dict[str, Any], schedule: str) -> None:
    with pytest.raises(ValidationError, match=f"schedule '{schedule}' has no released form"):
        Export.model_validate({**recipe, "schedule": {"type": schedule}})


class Unsaved:
    """A part like one that only computes."""


class OfAnotherKind(torch.nn.Module):
    """A part that is saved as something else than the release has there."""

    def __init__(self) -> None:
        super().__init__()
        self.module = torch.nn.Linear(2, 2)

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text('{"_class_name": "Transformer2DModel"}')


@pytest.mark.parametrize(
    ("part", "said"), [(Unsaved(), "it cannot be saved"), (OfAnotherKind(), "it saves no AutoencoderKL")]
)
def test_a_part_without_a_released_form_is_refused_with_the_reason(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: object, said: str
) -> None:
    config = discover().find("autoencoder", "sdxl_vae")
    monkeypatch.setattr(config, "build", lambda *_: part)
    with pytest.raises(RecipeError, match=f"the part for vae/ has no released form: {said}"):
        export(recipe, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"quantize": "int8"}, RecipeError, r"text_encoder/ has no released form: .* holds torch\.int8"),
        ({"weights": "streamed"}, RunError, "the text encoder cannot be saved"),
    ],
)
def test_an_encoder_that_does_not_hold_its_weights_is_refused(
    recipe: dict[str, Any],
    tiny: SimpleNamespace,
    tmp_path: Path,
    how: dict[str, str],
    error: type[Exception],
    said: str,
) -> None:
    export(recipe, tmp_path / "whole")
    again = from_folder(tmp_path / "whole", tiny, type="export", schedule=RELEASED)
    with pytest.raises(error, match=said):
        export({**again, "text_encoder": {**again["text_encoder"], **how}}, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_weights_that_float16_cannot_hold_are_refused(
    recipe: dict[str, Any], tiny: SimpleNamespace, tmp_path: Path
) -> None:
    export({**recipe, "dtype": "float32"}, tmp_path / "wide")
    file = tmp_path / f"wide/vae/{STEM}"
    state = load_file(file)
    state["encoder.conv_in.bias"] = torch.full_like(state["encoder.conv_in.bias"], 1e6)
    save_file({key: tensor.clone() for key, tensor in state.items()}, file)
    again = {**from_folder(tmp_path / "wide", tiny), "type": "export", "schedule": RELEASED}
    with pytest.raises(WeightsError, match=r"encoder\.conv_in\.bias .*float16"):
        export(again, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    export({**again, "dtype": "bfloat16"}, tmp_path / "out")


def test_a_folder_with_something_in_it_is_refused_and_left_alone(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"has precious\.txt in it: choose another --out"):
        export(recipe, tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_what_a_killed_run_left_is_cleared_away(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / f"out/{UNFINISHED}/unet").mkdir(parents=True)
    (tmp_path / "out/recipe.yaml").write_text("of that run")
    export(recipe, tmp_path / "out")
    assert not (tmp_path / f"out/{UNFINISHED}").exists() and (tmp_path / "out/model_index.json").is_file()


def test_a_full_disk_leaves_nothing(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy", full)
    with pytest.raises(RunError, match=r"could not be written: .*No space left"):
        export(recipe, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
