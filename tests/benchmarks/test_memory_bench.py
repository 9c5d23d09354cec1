from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from kolors_chatglm3.architecture import RELEASED
from kolors_sdxl.architecture import UNetArchitecture

from benchmarks import layouts, memory, memory_jobs
from benchmarks.__main__ import main
from benchmarks.layouts import PICKLES, SAFETENSORS, TOKENIZER, Size
from benchmarks.watched import PHASE, Stopped, Usage, watch
from kolors_kernel import BuildContext, discover
from kolors_weights.reading import find_weights, open_state

HOLD = """
import sys, time
held = bytearray(b"x") * {mb}_000_000
print("phase: waiting", flush=True)
time.sleep(0.2)
{end}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("layouts")
    layouts.write(place, memory.tiny(TOKENIZER))
    return place


def python(program: str) -> list[str]:
    return [sys.executable, "-S", "-c", program]


def test_the_encoder_has_the_shards_and_the_size_of_the_released_one() -> None:
    shapes, size = layouts.encoder_shapes(RELEASED), Size()
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 6_243_584_000 + 32  # and the rotation
    billions = {
        size.pickle_shard: [1.83, 1.97, 1.93, 1.82, 1.97, 1.93, 1.05],
        size.safetensors_shard: [4.91, 4.90, 2.68],
    }
    for most, wanted in billions.items():
        shards = layouts.shards(shapes, most)
        found = [2 * sum(torch.Size(shape).numel() for shape in shard.values()) / 1e9 for shard in shards]
        assert found == pytest.approx(wanted, abs=0.006)


def test_the_unet_has_the_size_of_the_released_one() -> None:
    unet, vae = layouts.picture_shapes(Size())
    assert sum(torch.Size(shape).numel() for shape in unet.values()) == 2_579_458_820
    assert sum(torch.Size(shape).numel() for shape in vae.values()) == 83_653_863
    assert Size().unet == UNetArchitecture()


def test_both_layouts_hold_the_same_encoder_in_shards(folder: Path) -> None:
    pickles = open_state(find_weights(folder / PICKLES / "text_encoder", "pytorch_model"))
    shards = open_state(find_weights(folder / SAFETENSORS / "text_encoder", "model"))
    assert pickles.keys() == shards.keys()
    for key, tensor in pickles.items():
        assert torch.equal(tensor, shards[key])
        assert tensor.dtype == torch.float16 and tensor.isfinite().all()
    assert {"output_layer.weight", "encoder.final_layernorm.weight", "rotary_pos_emb.inv_freq"} < pickles.keys()
    assert len(list((folder / PICKLES / "text_encoder").glob("*.bin"))) > 2
    assert len(list((folder / SAFETENSORS / "text_encoder").glob("*.safetensors"))) > 1


def test_a_pickle_of_the_layout_is_what_torch_itself_writes(folder: Path, tmp_path: Path) -> None:
    for file in (folder / PICKLES / "text_encoder").glob("*.bin"):
        state = torch.load(file, weights_only=True)
        torch.save(state, tmp_path / file.name)
        again = torch.load(tmp_path / file.name, weights_only=True)
        assert all(torch.equal(tensor, again[key]) for key, tensor in state.items())
        assert abs((tmp_path / file.name).stat().st_size - file.stat().st_size) < 1000


def test_rows_of_a_matrix_differ_and_have_the_size_of_untrained_ones(folder: Path) -> None:
    state = open_state(find_weights(folder / SAFETENSORS / "unet", "diffusion_pytorch_model"))
    for weight in (tensor.flatten(1).float() for tensor in state.values() if tensor.dim() > 1):
        assert len(weight.unique(dim=0)) == len(weight)
        assert weight.std().item() == pytest.approx(0.5 / weight.shape[1] ** 0.5, rel=0.2)


@pytest.mark.parametrize("layout", [PICKLES, SAFETENSORS])
def test_we_draw_from_both_layouts(folder: Path, tmp_path: Path, layout: str) -> None:
    recipe = memory.recipe(folder / layout, memory.STREAMED, size=64, steps=1)
    job = discover().find("recipe", "text_to_image").model_validate(recipe)
    job.build(BuildContext(dtype="bfloat16", out=tmp_path)).run()  # type: ignore[attr-defined]
    assert (tmp_path / "000.png").is_file()


def test_a_process_is_watched_by_its_peak_and_by_its_phases() -> None:
    usage = watch(
        python(HOLD.format(mb=300, end="del held; print('phase: after', flush=True); time.sleep(0.2)")), {}, spare=0
    )
    assert 0.28 < usage.phases["waiting"] <= usage.peak < 0.5
    assert 0.27 < usage.anonymous <= usage.peak
    assert usage.phases["after"] < 0.1
    assert usage.seconds > 0.4


def test_a_process_that_fails_says_where_and_why() -> None:
    with pytest.raises(Stopped, match="exit code 3 in waiting: it broke"):
        watch(python(HOLD.format(mb=1, end="print('it broke', file=sys.stderr); sys.exit(3)")), {}, spare=0)


def test_a_process_is_ended_before_the_machine_runs_out() -> None:
    with pytest.raises(Stopped, match=r"ended in start at \d+\.\d GiB, \d+\.\d of it anonymous"):
        watch(python("import time; time.sleep(60)"), {}, spare=1e6)


def run(tmp_path: Path, *chosen: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """Run the bench and return its rows by their names."""
    written = tmp_path / "memory.jsonl"
    words = ["--folder", str(tmp_path / "layouts"), "--write", "--quick", "--size", "64", "--steps", "1"]
    assert main(["memory", *words, "--only", *chosen, "--json", str(written)]) == 0
    header, *rows = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    assert header["bench"] == "memory"
    return {(row["case"], row["ours_name"], row.get("peer_name", "note")): row for row in rows}


def test_each_of_ours_is_set_beside_its_goal_and_each_of_diffusers_that_could_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(command: Sequence[str], environment: Mapping[str, str], *, spare: float) -> Usage:
        if "encode_by_diffusers" in command:
            return Usage(9.0, peak=18.0, anonymous=12.0)
        if "draw_by_diffusers" in command:
            raise Stopped("it was too large")
        if "--out" in command:
            report = Path(command[command.index("--out") + 1], "report.json")
            report.parent.mkdir()
            report.write_text(json.dumps({"phases": {"encode": {"memory_gib": 1.25}}}), encoding="utf-8")
        return Usage(3.0, peak=1.0 if f"{tmp_path}/layouts/{SAFETENSORS}" in command else 2.0, anonymous=0.5)

    monkeypatch.setattr(memory, "watch", fake)
    rows = run(tmp_path, "streamed", "streamed_from_pickles", "diffusers_encoder", "one_by_one", "diffusers")
    assert set(rows) == {
        ("encode", "streamed", "goal"),
        ("encode", "streamed_from_pickles", "goal"),
        ("encode", "diffusers_encoder", "machine"),
        ("encode", "streamed", "diffusers_encoder"),
        ("encode", "streamed_from_pickles", "diffusers_encoder"),
        ("draw", "one_by_one", "goal"),
        ("draw", "diffusers", "note"),
    }
    assert [row["goal"] for row in rows.values() if "goal" in row] == ["met", "missed", "met"]
    beside = rows["encode", "streamed", "diffusers_encoder"]
    assert (beside["ours"], beside["peer"], beside["ratio"], beside["peer_anonymous"]) == (1.0, 18.0, 18.0, 12.0)
    assert rows["draw", "diffusers", "note"]["reason"] == "it was too large"
    assert rows["draw", "one_by_one", "goal"]["ours_encode"] == 1.25


def test_the_bench_runs_whole_processes(tmp_path: Path) -> None:
    rows = run(tmp_path, "streamed", "one_by_one")
    assert set(rows) == {("encode", "streamed", "goal"), ("draw", "one_by_one", "goal")}
    encode, draw = rows["encode", "streamed", "goal"], rows["draw", "one_by_one", "goal"]
    assert 0.1 < encode["ours_encode"] <= encode["ours"] < 1.5
    assert 0.1 < draw["ours_denoise"] <= draw["ours"] < 7
    assert encode["goal"] == draw["goal"] == "met"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_diffusers_encodes_and_draws_from_the_layout_that_it_reads(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = json.dumps({"prompts": memory.PROMPTS, "size": 64, "steps": 1})
    memory_jobs.main("draw_in_turns_by_diffusers", str(folder / SAFETENSORS), asked)
    said = [line.removeprefix(PHASE) for line in capsys.readouterr().out.splitlines() if line.startswith(PHASE)]
    assert said == ["load", "encode", "load", "draw"]
