"""Peak memory at full size: the text encoder alone and a whole drawing, ours and diffusers', each a process of its own.

Weights are random, in the published layouts. A figure is the most resident memory of the process, in GiB; pages of
mapped files count in it, though the system takes them back when it needs them, so `anonymous` says what it cannot.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from kolors_chatglm3.architecture import Architecture
from kolors_sdxl.architecture import UNetArchitecture, VAEArchitecture

from benchmarks.layouts import PICKLES, SAFETENSORS, TOKENIZER, Size, vocabulary, write
from benchmarks.report import Note, Result, Row
from benchmarks.watched import Stopped, Usage, installed, watch

threads = 1
PROMPTS = ("一只戴墨镜的猫坐在红色的屋顶上，夕阳，写实摄影", "")
"""What is drawn and what to steer away from."""
SPARE = 1.5
"""GiB that the machine keeps: a process is ended before it takes them."""


@dataclass(frozen=True)
class Case:
    """One process: what it does, whose it is, and the most GiB it may take, where that was set as a goal."""

    subject: Literal["encode", "draw"]
    job: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    layout: str = SAFETENSORS
    goal: float | None = None

    @property
    def ours(self) -> bool:
        """Tell whether it runs this project's code."""
        return not self.job.endswith("diffusers")


STREAMED = {"weights": "streamed"}
CASES = {
    "streamed": Case("encode", "encode", STREAMED, goal=1.5),
    "streamed_from_pickles": Case("encode", "encode", STREAMED, PICKLES, goal=1.5),
    "int4": Case("encode", "encode", {"quantize": "int4"}),
    "int8": Case("encode", "encode", {"quantize": "int8"}),
    "resident": Case("encode", "encode"),
    "diffusers_encoder": Case("encode", "encode_by_diffusers"),
    "one_by_one": Case("draw", "draw", STREAMED, goal=7.0),
    "one_by_one_from_cache": Case("draw", "draw_from_cache", STREAMED),
    "diffusers": Case("draw", "draw_by_diffusers", {"offload": "none"}),
    "diffusers_in_turns": Case("draw", "draw_in_turns_by_diffusers"),
    "diffusers_model_offload": Case("draw", "draw_by_diffusers", {"offload": "model"}),
    "diffusers_sequential_offload": Case("draw", "draw_by_diffusers", {"offload": "sequential"}),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare where the weights are and what is run."""
    parser.add_argument("--folder", type=Path, required=True, help="where the two layouts are, or are written to")
    parser.add_argument("--write", action="store_true", help="write them first: 31 GB")
    parser.add_argument("--quick", action="store_true", help="write a model of a thousandth: to see that all works")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="the tokenizer.model to write with them")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="which processes")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=2, help="steps of the solver")


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Run each process by itself, beside its goal or all the memory there is; then set ours beside diffusers'."""
    if options.write:
        write(options.folder, tiny(options.tokenizer) if options.quick else Size(), tokenizer=options.tokenizer)
    measured: dict[str, Usage] = {}
    for name in options.only:
        case = CASES[name]
        try:
            measured[name] = usage = _measure(case, options)
        except Stopped as error:
            yield Note("memory", case.subject, name, str(error))
            continue
        limit = ("machine", installed()) if case.goal is None else ("goal", case.goal)
        yield _row(case, name, usage, limit[0], Usage(peak=limit[1]))
    for name, usage in measured.items():
        for peer in measured:
            if CASES[name].ours and not CASES[peer].ours and CASES[name].subject == CASES[peer].subject:
                yield _row(CASES[name], name, usage, peer, measured[peer])


def tiny(tokenizer: Path) -> Size:
    """Return a model of some 3 million parameters, whose encoder embeds what the tokenizer has."""
    encoder = Architecture(
        num_layers=3,
        hidden_size=64,
        num_attention_heads=4,
        multi_query_group_num=2,
        kv_channels=16,
        ffn_hidden_size=96,
        padded_vocab_size=vocabulary(tokenizer),
    )
    unet = UNetArchitecture(
        block_channels=(32, 64),
        layers_per_block=1,
        transformer_layers=(0, 1),
        heads=(1, 2),
        cross_attention_width=48,
        size_embedding_width=8,
        groups=8,
    )
    vae = VAEArchitecture(block_channels=(16, 32, 32, 32), layers_per_block=1, groups=8)
    return Size(encoder, unet, vae, pickle_shard=200_000, safetensors_shard=300_000)


def recipe(folder: Path, settings: Mapping[str, Any], *, size: int, steps: int) -> dict[str, Any]:
    """Return the recipe of our drawings: one part at a time in memory, in bfloat16."""
    return {
        "type": "text_to_image",
        "dtype": "bfloat16",
        "hold": "one",
        "prompts": [PROMPTS[0]],
        "negative_prompt": PROMPTS[1],
        "height": size,
        "width": size,
        "text_encoder": {"type": "chatglm3", "path": str(folder / "text_encoder"), **settings},
        "backbone": {"type": "sdxl_unet", "path": str(folder / "unet")},
        "autoencoder": {"type": "sdxl_vae", "path": str(folder / "vae")},
        "schedule": {"type": "scaled_linear", "steps": 1100, "beta_end": 0.014},
        "solver": {"type": "euler", "steps": steps},
    }


def _measure(case: Case, options: argparse.Namespace) -> Usage:
    folder: Path = options.folder.resolve() / case.layout
    with TemporaryDirectory() as temporary:
        if not case.job.startswith("draw") or not case.ours:
            asked = {**case.settings, "prompts": PROMPTS, "size": options.size, "steps": options.steps}
            return _watch([sys.executable, "-m", "benchmarks.memory_jobs", case.job, str(folder), json.dumps(asked)])
        drawn = recipe(folder, case.settings, size=options.size, steps=options.steps)
        if case.job == "draw_from_cache":
            drawn["text_encoder"] = {"type": "cached", "of": drawn["text_encoder"], "folder": f"{temporary}/prompts"}
        file = Path(temporary) / "recipe.yaml"
        file.write_text(json.dumps(drawn), encoding="utf-8")  # JSON is YAML
        command = [str(Path(sys.executable).with_name("kolors")), "run", str(file), "--out"]
        if case.job == "draw_from_cache":
            _watch([*command, f"{temporary}/first"])
        usage = _watch([*command, f"{temporary}/out"])
        report = json.loads(Path(temporary, "out/report.json").read_text(encoding="utf-8"))
        usage.phases = {name: phase["memory_gib"] for name, phase in report["phases"].items()}
        return usage


def _watch(command: Sequence[str]) -> Usage:
    return watch(command, {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}, spare=SPARE)


def _row(case: Case, name: str, ours: Usage, peer_name: str, peer: Usage) -> Row:
    extra: dict[str, float | int | str] = {"ours_seconds": ours.seconds, "ours_anonymous": ours.anonymous}
    extra |= {f"ours_{phase}": most for phase, most in ours.phases.items()}
    if peer_name == "goal":
        extra["goal"] = "met" if ours.peak <= peer.peak else "missed"
    elif peer_name != "machine":
        extra |= {"peer_seconds": peer.seconds, "peer_anonymous": peer.anonymous}
        extra |= {f"peer_{phase}": most for phase, most in peer.phases.items()}
    return Row("memory", case.subject, name, ours.peak, peer_name, peer.peak, "GiB", peer.peak / ours.peak, extra=extra)
