"""The kernels on a GPU: right in every dtype, capturable, and seen whole by torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kolors_ops.trials import Draw, Judge, Tape, Trial, implementation
from kolors_sdxl.config import SDXLUNet
from torch import Tensor

from benchmarks.on_device.calls import ODD, to_check
from kolors_kernel import BuildContext
from kolors_kernel.values import Conditioning, ConditioningSpec, LatentSpec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

DEVICE = torch.device("cuda")
KINDS = tuple(dict.fromkeys(trial.kind for trial in ODD))
TRIALS = to_check(["kolors_1024"], KINDS)
ONE_OF_EACH = [next(trial for trial in TRIALS if trial.kind == kind) for kind in KINDS]
TEXT, LATENTS = ConditioningSpec(tokens=7, width=24, pooled=20), LatentSpec(channels=4, downscale=8)
UNET_OPS = ("attention", "group_norm_silu", "geglu", "add_layer_norm")


@pytest.fixture(autouse=True)
def memory_of_one_test() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_as_right_as_torch_forward_and_backward(trial: Trial, dtype: torch.dtype) -> None:
    op, draw = implementation(trial.kind, "triton"), Draw(DEVICE, dtype)
    if reason := op.refuses(*trial.arguments(draw), **trial.named):
        assert trial in ODD, f"a call of the nets is refused: {reason}"
        pytest.skip(f"refused: {reason}")
    assert Judge(trial, draw).verdict(op).wrong is None


@pytest.mark.parametrize("trial", ONE_OF_EACH, ids=str)
def test_the_same_bits_every_time(trial: Trial) -> None:
    arguments = trial.arguments(Draw(DEVICE, torch.bfloat16))
    op = trial.asks(implementation(trial.kind, "triton"))
    first, *others = (Tape(trial.kind, op, arguments).everything() for _ in range(3))
    assert all(torch.equal(one, another) for other in others for one, another in zip(first, other, strict=True))


@pytest.mark.parametrize("trial", ONE_OF_EACH, ids=str)
def test_a_captured_graph_does_what_the_call_does_also_with_new_values(trial: Trial) -> None:
    op = trial.asks(implementation(trial.kind, "triton"))
    static = trial.arguments(Draw(DEVICE, torch.bfloat16))
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what is compiled and allocated at the first call is no part of a graph
        for _ in range(3):
            Tape(trial.kind, op, static).everything()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = Tape(trial.kind, op, static).everything()
    for seed in (0, 1):
        new = trial.arguments(Draw(DEVICE, torch.bfloat16, seed))
        for ours, theirs in zip(static, new, strict=True):
            if isinstance(ours, Tensor):
                ours.copy_(theirs)
        graph.replay()
        found = [t.clone() for t in captured]
        wanted = Tape(trial.kind, op, new).everything()
        assert all(torch.equal(one, another) for one, another in zip(found, wanted, strict=True))


@torch.no_grad()
def test_torch_compiles_the_unet_with_kernels_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compiler(net, fullgraph=True))
    compiled, plain, exact = unet("triton", compile=True), unet("triton"), unet("reference")
    for net in (compiled, plain):
        net.module.load_state_dict(exact.module.state_dict())
    found, called, wanted = (predicted(net) for net in (compiled, plain, exact))
    for each in (found, called):
        assert float((each - wanted).abs().max() / wanted.abs().max()) <= 1e-4


def unet(ops: str, **settings: Any) -> Any:
    named = {kind: {"type": ops} for kind in UNET_OPS}
    config = SDXLUNet.model_validate({**SDXLUNet.tiny().model_dump(mode="json"), **named, **settings})
    return config.build(BuildContext(str(DEVICE)), conditioning=TEXT, latents=LATENTS)


def predicted(net: Any) -> Tensor:
    draw = Draw(DEVICE, torch.float32)
    noisy, tokens, pooled, size = draw.normal((2, 4, 12, 8), (2, TEXT.tokens, TEXT.width), (2, TEXT.pooled), (2, 6))
    found: Tensor = net.predict(noisy, torch.tensor([3, 999], device=DEVICE), Conditioning(tokens, pooled), 64 * size)
    return found
