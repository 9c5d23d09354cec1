from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from kolors_recipes import checkpoints, training
from kolors_recipes.optimizer import learning_rate, optimizer_for, optimizer_state, restore_optimizer, step_clipped
from kolors_recipes.train_autoencoder import autoencoder_graph
from kolors_recipes.training_config import Optimizer
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from kolors_kernel import BuildContext, discover, load_recipe
from kolors_kernel.errors import RecipeError, RunError, WeightsError
from kolors_kernel.kinds import AutoencoderConfig
from kolors_kernel.values import Conditioning
from kolors_weights.precision import why_not_onednn

WEIGHTS = ("backbone/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
Write = Callable[..., Path]


def run(path: Path, out: Path, **settings: Any) -> dict[str, float]:
    keys = {key.replace("__", "."): value for key, value in settings.items()}
    return dict(load_recipe(path, keys).build(BuildContext(out=out)).run())


def same_weights(one: Path, other: Path, files: tuple[str, ...] = WEIGHTS) -> bool:
    pairs = [(load_file(one / "weights" / name), load_file(other / "weights" / name)) for name in files]
    assert all(left.keys() == right.keys() for left, right in pairs)
    return all(torch.equal(left[key], right[key]) for left, right in pairs for key in left)


def losses(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["event"] == "train_step"]


class Died(BaseException):
    """What stands for a killed process."""


@pytest.fixture
def die_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def arrange(steps: int) -> None:
        original, done = training._StageRun._step, list[int]()

        def step(self: Any, batch: Any) -> None:
            if len(done) == steps:
                monkeypatch.setattr(training._StageRun, "_step", original)
                raise Died
            done.append(1)
            original(self, batch)

        monkeypatch.setattr(training._StageRun, "_step", step)

    return arrange


def test_the_same_recipe_gives_the_same_weights_bit_for_bit(
    tiny: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    path = write(tiny.train((2, 1)))
    run(path, tmp_path / "a")
    run(path, tmp_path / "b")
    run(path, tmp_path / "c", seed=1)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("steps", [1, 3, 4, 6])  # before a checkpoint, after one, at the stage's end, in the second
def test_a_killed_run_goes_on_bit_for_bit(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, die_after: Callable[[int], None], steps: int
) -> None:
    path = write(tiny.train())
    run(path, tmp_path / "whole")
    die_after(steps)
    with pytest.raises(Died):
        run(path, tmp_path / "parts")
    run(path, tmp_path / "parts")
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_a_finished_run_goes_on_when_its_last_stage_gets_more_steps(
    tiny: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    path = write(tiny.train())
    run(path, tmp_path / "whole")
    run(path, tmp_path / "parts", stages__1__steps=1)
    assert run(path, tmp_path / "parts")["steps"] == 7
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_goes_on_in_other_batches_says_so(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tiny.train())
    run(path, tmp_path, stages__1__steps=1)
    with caplog.at_level(logging.INFO):
        run(path, tmp_path, stages__1__data__batch=3)
    (said,) = (message for message in caplog.messages if "the rest goes on" in message)
    assert "went to step 1 of epoch 0 in batches of " in said
    assert said.endswith(" on 1 ranks; the rest goes on in batches of 3 on 1 ranks")


def test_a_run_of_another_recipe_is_not_gone_on_with(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    path = write(tiny.train((1, 1)))
    run(path, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"differs at stages\.0\.optimizer\.learning_rate.*another --out"):
        run(path, tmp_path / "out", stages__0__optimizer__learning_rate=0.5)
    with pytest.raises(RecipeError, match=r"differs at stages\.1\.schedule\.steps"):  # another kind of steps
        run(path, tmp_path / "out", stages__1__schedule__steps=1200)


def test_the_loss_falls_on_real_pictures(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    recipe = tiny.train((120, 1), checkpoint_every=1000, log_every=20)
    recipe["stages"][0]["optimizer"]["learning_rate"] = 3e-3
    run(write(recipe), tmp_path / "out")
    noted = [loss for _, loss in losses(tmp_path / "out")]
    assert noted[5] < 0.8 * noted[0]


def test_stages_train_what_they_name_and_pass_the_weights_on(
    tiny: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    path = write(tiny.train((2, 2)) | {"keep": 9, "checkpoint_every": 1})
    run(path, tmp_path / "out")
    second, last = (tmp_path / "out/checkpoints" / name for name in ("00000003", "00000004"))
    frozen = [load_file(folder / "text_encoder.safetensors") for folder in (second, last)]
    trained = [load_file(folder / "backbone.safetensors") for folder in (second, last)]
    assert all(torch.equal(frozen[0][key], frozen[1][key]) for key in frozen[0])
    assert not all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])
    # What the second stage starts from, and what is saved at the end, is the first stage's average.
    average = load_file(tmp_path / "out/checkpoints/00000002/text_encoder.average.safetensors")
    saved = load_file(tmp_path / "out/weights" / WEIGHTS[1])
    assert all(torch.equal(average[key], frozen[0][key]) for key in frozen[0])
    assert all(any(torch.equal(tensor, other) for other in frozen[0].values()) for tensor in saved.values())


def test_stored_latents_and_conditioning_give_the_loss_of_the_pictures_they_came_from(
    tiny: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    stage = tiny.train((3, 1))["stages"][0] | {"trains": ["backbone"]}
    live = tiny.train(stages=[stage])
    stored = {"type": "precompute", "text_encoder": tiny.text_encoder, "autoencoder": tiny.autoencoder}
    stored |= {"data": tiny.fruit(batch=7), "sink": {"type": "zarr", "path": "stored.zarr"}, "keep": "float32"}
    pictures = run(write(stored, "store.yaml"), tmp_path / "store")
    cached = json.loads(json.dumps(live))
    data = {"path": str(tmp_path / "store/stored.zarr"), "pictures": "latents", "text": "conditioning", "filters": []}
    cached["stages"][0]["data"] |= data
    run(write(live), tmp_path / "live")
    path = write(cached, "cached.yaml")
    graph = load_recipe(path).graphs()["concept"]
    assert pictures["samples"] > 40
    assert graph.needs == ("backbone", "schedule")  # neither encoder is built
    run(path, tmp_path / "cached")
    for (_, one), (_, other) in zip(losses(tmp_path / "live"), losses(tmp_path / "cached"), strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_pictures_are_drawn_along_the_way_with_the_averaged_weights(
    tiny: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    recipe = tiny.train((4, 1), observers=[{"type": "image_grid", "columns": 2}, {"type": "tensorboard"}])
    samples = {"every": 2, "prompts": ["apple", "苹果", "梨"], "height": 16, "width": 16}
    recipe["stages"][0]["samples"] = samples | {"solver": {"type": "euler", "steps": 2}}
    path = write(recipe)
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    run(path, tmp_path / "out")
    grids = sorted((tmp_path / "out/samples").glob("*.png"))
    assert [grid.name for grid in grids] == ["00000002.png", "00000004.png"]
    with Image.open(grids[0]) as picture:
        assert picture.size == (2 * 20 + 4, 2 * 20 + 4)
        assert json.loads(picture.text["prompts"]) == ["apple", "苹果", "梨"]  # type: ignore[attr-defined]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "out/tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("concept/loss")] == [1, 2, 3, 4]
    # Drawing takes nothing from the training's randomness.
    del recipe["stages"][0]["samples"]
    run(write(recipe | {"observers": []}, "plain.yaml"), tmp_path / "plain")
    assert same_weights(tmp_path / "out", tmp_path / "plain")


def test_a_loss_that_is_not_finite_stops_the_run_and_never_reaches_a_checkpoint(
    tiny: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    recipe = tiny.train((40, 1), log_every=1000)
    recipe["stages"][0]["optimizer"] = {"learning_rate": 1e30, "clip": 1e30}
    with pytest.raises(RunError, match=r"the loss is .* stage 'concept'"):
        run(write(recipe), tmp_path / "out")
    for file in (tmp_path / "out").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values() if tensor.is_floating_point())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_between_steps_and_the_run_goes_on_from_there(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, number: signal.Signals
) -> None:
    path, out = write(tiny.train((100_000, 1), checkpoint_every=100_000)), tmp_path / "out"
    command = [sys.executable, "-m", "kolors_kernel", "run", str(path), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "is kept; run it again with the same --out" in said
    found = checkpoints.latest_checkpoint(out / "checkpoints")
    assert found is not None
    stopped_at = checkpoints.read_state(found)["position"]["step"]
    assert run(path, out, stages__0__steps=stopped_at + 1)["steps"] == stopped_at + 2


def test_a_full_disk_leaves_the_earlier_checkpoint_and_says_so(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(tiny.train((4, 1))), tmp_path / "out"
    original, calls = checkpoints.save_file, list[Path]()

    def save(tensors: Any, file: Path) -> None:
        calls.append(file)
        if len(calls) > 7:  # in the middle of the second checkpoint
            file.write_bytes(b"half a file")
            raise OSError(28, os.strerror(28), str(file))
        original(tensors, file)

    monkeypatch.setattr(checkpoints, "save_file", save)
    with pytest.raises(RunError, match=r"cannot write the checkpoint .*No space left.*untouched"):
        run(path, out)
    assert [each.name for each in (out / "checkpoints").iterdir()] == ["00000002"]
    monkeypatch.undo()
    run(path, out)
    run(path, tmp_path / "whole")
    assert same_weights(tmp_path / "whole", out)


def test_two_runs_do_not_share_a_folder(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    path, out = write(tiny.train((1, 1))), tmp_path / "out"
    with checkpoints.alone_in(out), pytest.raises(RecipeError, match="another run is writing to"):
        run(path, out)
    assert run(path, out)["steps"] == 2


def test_a_damaged_checkpoint_is_named(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    path, out = write(tiny.train((2, 1))), tmp_path / "out"
    run(path, out)
    last = checkpoints.latest_checkpoint(out / "checkpoints")
    assert last is not None
    (last / "optimizer.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match=r"optimizer\.safetensors is damaged.*go on from the one before"):
        run(path, out)


def test_training_the_text_encoder_on_stored_conditioning_is_refused(tiny: SimpleNamespace, write: Write) -> None:
    recipe = tiny.train()
    recipe["stages"][0]["data"]["text"] = "conditioning"
    with pytest.raises(RecipeError, match="stage 'concept' trains the text encoder but reads stored conditioning"):
        load_recipe(write(recipe))


def test_an_autoencoder_learns_real_pictures_and_is_saved_with_its_measured_scale(
    tiny: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    stage = {"name": "only", "data": tiny.fruit(), "steps": 60, "optimizer": {"learning_rate": 4e-3}}
    recipe = {"type": "train_autoencoder", "autoencoder": tiny.autoencoder, "stages": [stage], "log_every": 5}
    path = write(recipe)
    run(path, tmp_path / "out")
    noted = [loss for _, loss in losses(tmp_path / "out")]
    assert noted[-1] < 0.7 * noted[0]
    trained = {"type": "sdxl_vae", "path": str(tmp_path / "out/weights/autoencoder")}
    drawing = load_recipe(write(tiny.drawing(autoencoder=trained), "draw.yaml"))
    autoencoder = drawing.autoencoder.build(BuildContext())  # type: ignore[attr-defined]
    source = load_recipe(path).stages[0].data.build(BuildContext())  # type: ignore[attr-defined]
    batches = [batch for part in source.parts(1000) for batch in source.read(part)]
    latents = torch.cat([autoencoder.encode(batch.images / 127.5 - 1) for batch in batches])
    assert float(latents.detach().std()) == pytest.approx(1, rel=0.1)


def test_the_learning_rate_rises_and_falls_as_set() -> None:
    settings = Optimizer(learning_rate=1.0, warmup=4, decay="cosine")
    rates = [learning_rate(settings, step, 24) for step in range(24)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[14] == pytest.approx(0.01 + 0.99 * 0.5)  # half way down
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))
    assert {learning_rate(Optimizer(learning_rate=2.0), step, 9) for step in range(9)} == {2.0}


def test_a_part_without_weights_is_trained_around_but_never_itself(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Table:
        """A text encoder with nothing to learn: no module, nothing to save."""

        def encode(self, prompts: Any) -> Conditioning:
            return Conditioning(torch.ones(len(prompts), 4, 32), torch.ones(len(prompts), 32))

    recipe = load_recipe(write(tiny.train((2, 1))), {"stages.0.trains": ["backbone"]})
    monkeypatch.setattr(type(recipe.text_encoder), "build", lambda self, ctx: Table())  # type: ignore[attr-defined]
    assert recipe.build(BuildContext(out=tmp_path / "out")).run()["steps"] == 3
    assert [each.name for each in (tmp_path / "out/weights").iterdir()] == ["backbone"]
    recipe = load_recipe(write(tiny.train((2, 1))))
    with pytest.raises(RecipeError, match=r"text_encoder 'chatglm3' cannot be trained: it has no module and no save"):
        recipe.build(BuildContext(out=tmp_path / "other"))


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint_though_the_loss_before_it_is(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(gradients: Any, **_: Any) -> torch.Tensor:
        for gradient in gradients:
            gradient.fill_(torch.nan)
        return torch.tensor(torch.nan)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", overflow)
    with pytest.raises(RunError, match=r"the gradient's norm is nan near step 1 of stage 'concept'"):
        run(write(tiny.train((1, 1))), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_a_step_is_clipping_and_plain_adamw_and_goes_on_from_its_state(
    layout: torch.memory_format, clip: float
) -> None:
    draw = torch.Generator().manual_seed(0)
    first = [torch.randn(6, 4, 3, 3, generator=draw), torch.randn(5, generator=draw)]
    gradients = [[torch.randn(p.shape, generator=draw) for p in first] for _ in range(4)]
    settings = Optimizer(learning_rate=0.01, clip=clip)

    def trained() -> nn.Module:
        module = nn.ParameterList([p.clone() for p in first])
        return module.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]

    plain = trained()
    right = torch.optim.AdamW(plain.parameters(), 0.01, weight_decay=settings.weight_decay, fused=False)
    ours = trained()
    optimizer = optimizer_for(list(ours.parameters()), settings)
    for number, step in enumerate(gradients):
        if number == 2:  # as a run that goes on does: from a file, in which all is contiguous
            state = {name: value.contiguous() for name, value in optimizer_state(optimizer).items()}
            optimizer = optimizer_for(list(ours.parameters()), settings)
            restore_optimizer(optimizer, state)
        for module in (plain, ours):
            for parameter, gradient in zip(module.parameters(), step, strict=True):
                # As autograd leaves it, lying as the weights do; and once as it comes from other ranks.
                parameter.grad = gradient.clone() if number == 3 else torch.empty_like(parameter).copy_(gradient)
        whole = torch.nn.utils.clip_grad_norm_(plain.parameters(), clip)
        right.step()
        assert torch.allclose(step_clipped(optimizer, list(ours.parameters()), clip), whole)
        assert all(parameter.grad is None for parameter in ours.parameters())
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_training_computes_float32_by_the_faster_library_and_leaves_the_process_as_it_was(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    matmul: Any = cast(Any, torch.backends.mkldnn).matmul
    before, during, original = matmul.fp32_precision, list[str](), training._StageRun._step

    def step(self: Any, batch: Any) -> None:
        during.append(matmul.fp32_precision)
        original(self, batch)

    monkeypatch.setattr(training._StageRun, "_step", step)
    with caplog.at_level(logging.INFO, logger="kolors_recipes"):
        run(write(tiny.train((1, 1))), tmp_path / "out")
    assert set(during) == {"bf16" if why_not_onednn() is None else "ieee"}
    assert matmul.fp32_precision == before
    assert sum("float32 products on a CPU: " in line for line in caplog.messages) == 1


def test_a_stage_that_is_over_cannot_get_more_steps(tiny: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    path = write(tiny.train((1, 1)))
    run(path, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"differs at stages\.0\.steps\."):
        run(path, tmp_path / "out", stages__0__steps=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stages.1.name": "concept"}, "2 stages are called 'concept'"),
        ({"stages.0.samples": {"every": 1, "prompts": ["x"], "height": 18, "width": 16}}, "18 x 16 is not a multiple"),
    ],
)
def test_a_stage_that_could_not_run_as_told_is_refused_when_the_recipe_is_read(
    tiny: SimpleNamespace, write: Write, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(tiny.train()), settings)


@pytest.mark.parametrize("recipe", ["train_autoencoder", "precompute"])
def test_data_without_pictures_are_refused_where_pictures_are_encoded(
    tiny: SimpleNamespace, write: Write, recipe: str
) -> None:
    data = tiny.fruit(pictures="latents")
    others = {
        "train_autoencoder": {"stages": [{"name": "only", "data": data, "steps": 1}]},
        "precompute": {"data": data, "sink": {"type": "zarr"}, "outputs": ["latents"]},
    }
    with pytest.raises(RecipeError, match="the data give captions and latents, but the autoencoder reads images"):
        load_recipe(write({"type": recipe, "autoencoder": tiny.autoencoder, **others[recipe]}))


def test_copies_of_weight_zero_do_not_count_in_the_loss_of_an_autoencoder(tiny: SimpleNamespace) -> None:
    config = cast(AutoencoderConfig, discover().find("autoencoder", "sdxl_vae").model_validate(tiny.autoencoder))
    autoencoder = config.build(BuildContext())
    graph, images = autoencoder_graph(), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def loss(images: torch.Tensor, weight: list[float]) -> torch.Tensor:
        random, ports = torch.Generator().manual_seed(1), {"images": images, "weight": torch.tensor(weight)}
        (found,) = graph.run(random=random, kl_weight=1.0, autoencoder=autoencoder, **ports)
        return torch.as_tensor(found)

    other = images.clone()
    other[2] = 1 - other[2]
    assert torch.equal(loss(images, [1, 1, 0]), loss(other, [1, 1, 0]))
    assert not torch.equal(loss(images, [1, 1, 1]), loss(other, [1, 1, 1]))


def test_what_a_killed_run_left_of_a_checkpoint_is_cleared_away(
    tiny: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    left = tmp_path / "out/checkpoints/.partial"
    left.mkdir(parents=True)
    (left / "stale.safetensors").write_bytes(b"half a file")
    run(write(tiny.train((1, 1))), tmp_path / "out")
    assert sorted(each.name for each in left.parent.iterdir()) == ["00000001", "00000002"]
    assert not list(left.parent.rglob("stale*"))
