"""The whole nets through the kernels: that they are wired as the reference is, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kolors_chatglm3.config import ChatGLM3
from kolors_sdxl.config import SDXLVAE, SDXLUNet
from torch import Tensor, nn

from kolors_kernel import BuildContext
from kolors_kernel.values import Conditioning, ConditioningSpec, LatentSpec

TEXT, LATENTS = ConditioningSpec(tokens=9, width=24, pooled=20), LatentSpec(channels=4, downscale=8)
UNET_OPS = ("attention", "group_norm_silu", "geglu", "add_layer_norm")
TEXT_OPS = ("rms_norm", "rotary")


def with_ops(config: Any, kinds: tuple[str, ...], name: str) -> Any:
    """The component with every op of these kinds by the implementation of this name."""
    return type(config).model_validate({**config.model_dump(mode="json"), **{kind: {"type": name} for kind in kinds}})


def unet(ops: str, dtype: str) -> Any:
    config = with_ops(SDXLUNet.tiny(), UNET_OPS, ops)
    return config.build(BuildContext(dtype=dtype), conditioning=TEXT, latents=LATENTS)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def predicted(net: Any, dtype: torch.dtype) -> Tensor:
    """What a net predicts for two noisy latents and texts of which one is padded, of odd sizes."""
    bias = torch.zeros(2, TEXT.tokens)
    bias[0, 0], bias[1, 5:] = 3.0, -torch.inf
    text = Conditioning(
        random(2, TEXT.tokens, TEXT.width, seed=1, dtype=dtype), random(2, 20, seed=2, dtype=dtype), bias
    )
    size = torch.tensor([[64.0, 48, 0, 0, 64, 48]]).expand(2, 6)
    noisy = random(2, 4, 6, 10, seed=3, dtype=dtype)
    found: Tensor = net.predict(noisy, torch.tensor([3.0, 700.0]), text, size)
    return found


def gradients(module: nn.Module, result: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    (result.float() * random(*result.shape, seed=4)).sum().backward()
    return {name: weight.grad.float() for name, weight in module.named_parameters() if weight.grad is not None}


def distance(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_a_unet_of_kernels_predicts_and_learns_what_the_reference_does(channels_last: bool) -> None:
    ours, wanted = unet("triton", "float32"), unet("reference", "float32")
    ours.module.load_state_dict(wanted.module.state_dict())
    if channels_last:
        ours.module.to(memory_format=torch.channels_last)
    made, right = predicted(ours, torch.float32), predicted(wanted, torch.float32)
    assert distance(made, right) <= 1e-5
    found, expected = gradients(ours.module, made), gradients(wanted.module, right)
    assert found.keys() == expected.keys()
    assert len(found) > 50
    for name, gradient in found.items():
        assert distance(gradient, expected[name]) <= 1e-4, name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_unet_of_kernels_is_as_right_in_half_precision(dtype: str) -> None:
    kind = getattr(torch, dtype)
    exact, ours, theirs = unet("reference", "float64"), unet("triton", dtype), unet("reference", dtype)
    for net in (ours, theirs):
        net.module.load_state_dict(exact.module.state_dict())
    with torch.no_grad():
        exactly = predicted(exact, torch.float64)
        assert distance(predicted(ours, kind), exactly) <= 2 * distance(predicted(theirs, kind), exactly)


def test_a_vae_of_kernels_decodes_what_the_reference_does() -> None:
    config = SDXLVAE.tiny()
    ours, wanted = (with_ops(config, UNET_OPS[:2], ops).build(BuildContext()) for ops in ("triton", "reference"))
    ours.module.load_state_dict(wanted.module.state_dict())
    latents = random(1, 4, 5, 6, seed=5)
    with torch.no_grad():
        assert distance(ours.decode(latents), wanted.decode(latents)) <= 1e-5


def test_a_chatglm3_of_kernels_encodes_and_learns_what_the_reference_does() -> None:
    prompts = ["一只戴着草帽的小猫", "", "a cat in a straw hat"]
    ours, wanted = (with_ops(ChatGLM3.tiny(), TEXT_OPS, ops).build(BuildContext()) for ops in ("triton", "reference"))
    ours.module.load_state_dict(wanted.module.state_dict())
    made, right = ours.encode(prompts), wanted.encode(prompts)
    assert distance(made.tokens, right.tokens) <= 1e-5
    assert distance(made.pooled, right.pooled) <= 1e-5
    found, expected = gradients(ours.module, made.pooled), gradients(wanted.module, right.pooled)
    assert found.keys() == expected.keys()
    assert len(found) >= 14
    for name, gradient in found.items():
        assert distance(gradient, expected[name]) <= 1e-4, name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
@pytest.mark.parametrize("ops", ["triton", "auto"])
def test_torch_compiles_a_unet_of_kernels_as_one_graph(ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice among implementations, with the table that it asks, leaves no break in the graph."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compiler(net, fullgraph=True, backend="aot_eager"))
    compiled, plain = unet(ops, "float32"), unet("triton", "float32")
    compiled.module.load_state_dict(plain.module.state_dict())
    compiled.compile()
    made, right = predicted(compiled, torch.float32), predicted(plain, torch.float32)
    assert distance(made, right) <= 1e-5
    found, expected = gradients(compiled.module, made), gradients(plain.module, right)
    assert max(distance(gradient, expected[name]) for name, gradient in found.items()) <= 1e-4
