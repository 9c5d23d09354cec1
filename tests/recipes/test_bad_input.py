"""What a whole run makes of input that is wrong: one clear line, the exit code, and nothing lost that was there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kolors_kernel import BuildContext, load_recipe
from kolors_kernel.cli import main

Write = Callable[..., Path]
FILE = "backbone/diffusion_pytorch_model"


@pytest.fixture
def kolors(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command on a recipe; return its exit code and what it says of errors."""

    def run(path: Path, *, out: Path, **settings: Any) -> tuple[int, str]:
        changes = [part for key, value in settings.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
        code = main(["run", str(path), "--out", str(out), *changes])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("which", "settings", "said"),
    [
        ("drawing", {"seed": 2**63}, "seed: Input should be less than"),
        ("train", {"seed": 2**63}, "seed: Input should be less than"),
        ("train", {"backbone__type": "sdxl_unet_openvino"}, "'sdxl_unet_openvino' has no gradients: take another"),
        ("drawing", {"guidance__scale": ".inf"}, "guidance.scale: Input should be a finite number"),
        ("drawing", {"solver__steps": -3}, "solver.steps: Input should be greater than 0"),
        ("drawing", {"autoencoder__tile": 7}, "autoencoder: tile is 7 pixels, must be a multiple of 4"),
        ("train", {"stages__0__optimizer__learning_rate": ".nan"}, "stages.0.optimizer.learning_rate: Input should be"),
        ("train", {"stages__0__optimizer__betas": "[2, 3]"}, "stages.0.optimizer.betas.0: Input should be less than 1"),
        (
            "drawing",
            {"solver__steps": 2000},
            "2000 steps of leading spacing do not fit on a schedule of 1100 timesteps",
        ),
        ("drawing", {"width": 30}, "the size 16 x 30 is not a multiple of 4 pixels; try 16 x 32"),
        (
            "train",
            {"stages__1__data__buckets__side": 30},
            "the size 30 x 30 is not a multiple of 4 pixels; try 32 x 32",
        ),
        ("drawing", {"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ("train", {"device": "no such thing"}, "device 'no such thing' cannot be used here"),
    ],
)
def test_a_setting_that_no_run_can_use_is_wrong_input(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, kolors: Any, which: str, settings: Any, said: str
) -> None:
    code, error = kolors(write(getattr(tiny, which)()), out=tmp_path / "out", **settings)
    assert code == 2
    assert said in error
    assert not (tmp_path / "out").exists()


def test_a_refused_run_leaves_the_recipe_of_the_run_that_is_there(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, kolors: Any
) -> None:
    path, out = write(tiny.train((1, 1))), tmp_path / "out"
    assert kolors(path, out=out)[0] == 0
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    code, error = kolors(path, out=out, seed=4)
    assert code == 2
    assert "holds a run of another recipe; it differs at seed" in error
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


class Code:
    """What a pickle may do to whoever loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def trained(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> Path:
    """A recipe that draws with a U-Net from a folder."""
    recipe: Any = load_recipe(write(tiny.drawing(prompts=["apple"])))
    specs = {"conditioning": recipe.text_encoder.spec(), "latents": recipe.autoencoder.spec()}
    recipe.backbone.build(BuildContext(), **specs).save(tmp_path / "backbone")
    return write(tiny.drawing(prompts=["apple"], backbone={"type": "sdxl_unet", "path": str(tmp_path / "backbone")}))


def _broken(how: str, state: Mapping[str, torch.Tensor], file: Path) -> None:
    """Put a broken checkpoint in the place of `file`.safetensors."""
    whole = file.with_suffix(".safetensors")
    if how == "truncated":
        whole.write_bytes(whole.read_bytes()[:5000])
        return
    keys = [key for key in state if state[key].ndim == 4]
    changed = {
        "missing": {key: value for key, value in state.items() if key != keys[0]},
        "extra": {**state, "more": torch.zeros(1)},
        "misshapen": {**state, keys[0]: torch.zeros(7)},
        "not numbers": {**state, keys[0]: torch.full_like(state[keys[0]], torch.nan)},
    }
    if how in changed:
        save_file(changed[how], whole)
        return
    whole.unlink()
    if how != "absent":
        code = {"code": Code(file.parent / "it ran")} if how == "pickle with code" else {}
        torch.save({**state, **code}, file.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("truncated", 2, "model.safetensors is not a complete safetensors file"),
        ("missing", 2, "does not fit the model; 1 missing: "),
        ("extra", 2, "does not fit the model; 1 extra: more"),
        ("misshapen", 2, "is [7], should be ["),
        ("absent", 2, "has no weights: looked for"),
        ("pickle with code", 2, "perhaps code, and is refused"),
        ("not numbers", 2, "conv_in.weight is not finite"),
        ("plain pickle", 0, ""),
    ],
)
def test_a_checkpoint_is_read_with_care(
    trained: Path, tmp_path: Path, kolors: Any, how: str, code: int, said: str
) -> None:
    _broken(how, load_file(tmp_path / f"{FILE}.safetensors"), tmp_path / FILE)
    found, error = kolors(trained, out=tmp_path / "out")
    assert found == code, error
    assert said in error
    assert len(error.splitlines()) == (code != 0)
    assert (tmp_path / "out/000.png").exists() == (code == 0)
    assert not (tmp_path / "backbone/it ran").exists()


def test_damage_that_a_training_meets_is_named_and_mended_the_training_goes_on(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, kolors: Any
) -> None:
    """Steps of one picture each: the first ones are whole, and one of the later ones is not."""
    store = tmp_path / "store"
    shutil.copytree(tiny.store, store)
    recipe = tiny.train((60, 1), checkpoint_every=1, log_every=100)
    for stage in recipe["stages"]:
        stage |= {
            "data": {"type": "zarr", "path": str(store), "buckets": {"side": 8}, "batch": 1},
            "trains": ["backbone"],
        }
    path, chunk = write(recipe), store / "samples/any/image/c/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:1_000_000] + bytes(300_000) + whole[1_300_000:])
    code, error = kolors(path, out=tmp_path / "out")
    assert code == 2
    assert f"{chunk}: " in error and "does not match its checksum (sample '" in error
    (last, *_) = kept = sorted((tmp_path / "out/checkpoints").iterdir(), reverse=True)
    assert len(kept) == 2
    chunk.unlink()
    assert f"{chunk}: the shard is missing (sample" in kolors(path, out=tmp_path / "out")[1]
    assert sorted((tmp_path / "out/checkpoints").iterdir(), reverse=True) == kept
    chunk.write_bytes(whole)
    steps = int(last.name) + 1
    assert kolors(path, out=tmp_path / "out", stages__0__steps=steps)[0] == 0
    assert kolors(path, out=tmp_path / "again", stages__0__steps=steps)[0] == 0
    mended, straight = (load_file(tmp_path / out / f"weights/{FILE}.safetensors") for out in ("out", "again"))
    assert all(torch.equal(mended[key], straight[key]) for key in straight)


def test_a_step_that_is_damaged_as_a_whole_counts_for_nothing(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, kolors: Any
) -> None:
    """Every sample is damaged but a few, in steps of one: most steps have only copies of weight 0."""
    store, recipe = tmp_path / "store", tiny.train((12, 1), log_every=100)
    shutil.copytree(tiny.store, store)
    for stage in recipe["stages"]:
        stage |= {
            "data": {"type": "zarr", "path": str(store), "buckets": {"side": 8}, "batch": 1, "damaged": "replace"},
            "trains": ["backbone"],
        }
    chunk = store / "samples/any/image/c/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:400_000] + bytes(1_600_000) + whole[2_000_000:])
    code, error = kolors(write(recipe), out=tmp_path / "out")
    assert code == 0, error
    assert len((tmp_path / "out/quarantine.jsonl").read_text(encoding="utf-8").splitlines()) > 1
