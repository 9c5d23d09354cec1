from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kolors_kernel import BuildContext, ComponentConfig, discover
from kolors_kernel.errors import MissingDependency, RecipeError, RunError
from kolors_kernel.values import Conditioning, ConditioningSpec, LatentSpec

TEXT, LATENTS = ConditioningSpec(tokens=7, width=24, pooled=20), LatentSpec(channels=4, downscale=8)
Peer = Callable[..., Any]
SMALL = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (1, 2),
    "layers_per_block": 1,
}
"""The net of diffusers at two resolutions, since OpenVINO compiles each."""


@pytest.fixture(scope="module", autouse=True)
def ov() -> Any:
    return pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'kolors-kernel[openvino]'")


@pytest.fixture(scope="module")
def released(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that diffusers saved a Kolors-shaped U-Net in."""
    folder = tmp_path_factory.mktemp("unet")
    peer(**SMALL).save_pretrained(folder)
    return folder


def load(kind: str, folder: Path, dtype: str = "float32", given: int = 0, **settings: Any) -> Any:
    config: Any = discover().find("backbone", kind).model_validate({"path": folder, **settings})
    latents = LatentSpec(LATENTS.channels, LATENTS.downscale, given)
    return config.build(BuildContext(dtype=dtype), conditioning=TEXT, latents=latents)


def inputs(
    *, seed: int = 1, batch: int = 2, rows: int = 7, sides: tuple[int, int] = (12, 8), channels: int = 4
) -> tuple[Tensor, Tensor, Conditioning, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    text = Conditioning(
        torch.randn(batch, rows, TEXT.width, generator=draw), torch.randn(batch, TEXT.pooled, generator=draw)
    )
    noisy = torch.randn(batch, channels, *sides, generator=draw)
    size = torch.tensor([[1024.0, 768.0, 0.0, 13.0, 512.0, 640.0], [333.0, 2000.0, 7.0, 0.0, 1024.0, 1023.0]])
    return noisy, torch.tensor([1099, 961])[:batch], text, size[:batch]


def with_bias(asked: tuple[Tensor, Tensor, Conditioning, Tensor]) -> tuple[Tensor, Tensor, Conditioning, Tensor]:
    """The same, with a row that stands for 226 equal ones and one that is padding."""
    noisy, t, text, size = asked
    bias = torch.zeros(text.tokens.shape[:2])
    bias[:, 0], bias[:, -1] = math.log(226), -math.inf
    return noisy, t, Conditioning(text.tokens, text.pooled, bias), size


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@torch.no_grad()
def test_predicts_what_diffusers_predicts(peer: Peer, released: Path) -> None:
    noisy, t, text, size = inputs()
    added = {"text_embeds": text.pooled, "time_ids": size}
    wanted = peer(**SMALL)(noisy, t, text.tokens, added_cond_kwargs=added).sample
    assert error(load("sdxl_unet_openvino", released).predict(noisy, t, text, size), wanted) <= 1e-5


@torch.no_grad()
def test_predicts_what_torch_predicts_for_any_shape_and_any_text(released: Path) -> None:
    plain, ours = load("sdxl_unet", released), load("sdxl_unet_openvino", released, shapes=2)
    for sides, batch in (((12, 8), 2), ((7, 18), 1)):
        for rows in (7, 2, 5):
            for asked in (
                inputs(batch=batch, rows=rows, sides=sides),
                inputs(seed=2, batch=batch, rows=rows, sides=sides),
            ):
                assert error(ours.predict(*asked), plain.predict(*asked)) <= 1e-5
                assert error(ours.predict(*with_bias(asked)), plain.predict(*with_bias(asked))) <= 1e-5
    assert ours.report()["openvino"].count("compiled in") == 2  # once for a shape of latents, whatever the text


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_torchs(released: Path) -> None:
    asked = with_bias(inputs())
    wanted = load("sdxl_unet", released).predict(*asked)
    plain, ours = (load(kind, released, "bfloat16").predict(*asked) for kind in ("sdxl_unet", "sdxl_unet_openvino"))
    assert ours.dtype == torch.float32  # that of the latents
    assert 0 < error(ours, wanted) <= 1.5 * error(plain, wanted)


@torch.no_grad()
def test_a_changed_text_is_read_again(released: Path) -> None:
    plain, ours = load("sdxl_unet", released), load("sdxl_unet_openvino", released)
    noisy, t, text, size = inputs()
    before = ours.predict(noisy, t, text, size)
    assert torch.equal(ours.predict(noisy, t, text, size), before)
    text.tokens.mul_(-1)
    after = ours.predict(noisy, t, text, size)
    assert error(after, before) > 1e-3
    assert error(after, plain.predict(noisy, t, text, size)) <= 1e-5


@torch.no_grad()
def test_the_text_is_handed_over_once_and_without_a_copy(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kolors_sdxl import openvino_unet

    ours, asked, handed = load("sdxl_unet_openvino", released), inputs(), []
    ours.predict(*asked)
    before = openvino_unet.shared
    monkeypatch.setattr(openvino_unet, "shared", lambda tensor: handed.append(tensor.data_ptr()) or before(tensor))
    ours.predict(*asked)
    assert len(handed) == 6  # five inputs and the output
    _, _, text, _ = other = inputs(seed=2)
    handed.clear()
    ours.predict(*other)
    keys = ours._text_keys(text.tokens, torch.float32)
    assert handed[5:-1] == [part.data_ptr() for pair in keys for part in pair]


@torch.no_grad()
def test_weights_that_are_loaded_are_compiled_anew(released: Path) -> None:
    plain, ours, asked = load("sdxl_unet", released), load("sdxl_unet_openvino", released), inputs()
    before = ours.predict(*asked)
    for net in (plain, ours):
        net.module.load_state_dict({key: value * 0.9 for key, value in net.module.state_dict().items()})
    after = ours.predict(*asked)
    assert error(after, before) > 1e-3
    assert error(after, plain.predict(*asked)) <= 1e-5


@torch.no_grad()
def test_an_inpainting_net_and_one_without_projection_work_too(peer: Peer, tmp_path: Path) -> None:
    peer(
        **SMALL, in_channels=9, encoder_hid_dim=None, encoder_hid_dim_type=None, cross_attention_dim=24
    ).save_pretrained(tmp_path)
    asked = inputs(channels=9)
    found = load("sdxl_unet_openvino", tmp_path, given=5).predict(*asked)
    assert found.shape == (2, 4, 12, 8)
    assert error(found, load("sdxl_unet", tmp_path, given=5).predict(*asked)) <= 1e-5


@torch.no_grad()
def test_as_many_shapes_stay_compiled_as_are_asked_for(released: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours, wide, narrow = load("sdxl_unet_openvino", released), inputs(batch=1), inputs(batch=1, sides=(2, 2))
    assert ours.report() == {"openvino": "nothing is compiled before the first prediction"}
    with caplog.at_level(logging.INFO):
        for asked in (wide, wide, narrow, wide):
            ours.predict(*asked)
    assert [line.split(":")[0] for line in caplog.messages] == [
        f"compiled the U-Net for latents 1 x 4 x {sides}" for sides in ("12 x 8", "2 x 2", "12 x 8")
    ]
    assert f"threads: {torch.get_num_threads()}" in caplog.messages[0] and "f32" in caplog.messages[0]
    assert ours.report()["openvino"] in caplog.messages[-1]


@torch.no_grad()
def test_it_is_saved_as_it_was_read(released: Path, tmp_path: Path) -> None:
    ours, asked = load("sdxl_unet_openvino", released), inputs()
    ours.freeze()
    found = ours.predict(*asked)
    ours.save(tmp_path)
    assert error(found, load("sdxl_unet", tmp_path).predict(*asked)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_log_of_a_count_is_not_rounded(ov: Any, dtype: torch.dtype) -> None:
    from kolors_sdxl.openvino_graph import Graph
    from kolors_sdxl.openvino_ops import attention

    graph, rows = Graph(), 8
    q, k, v = (graph.input(dtype, 1, 1, count, 16) for count in (1, -1, -1))
    result = attention(q, k, v, graph.input(torch.float32, 1, 1, 1, -1)).float()
    values = torch.zeros(1, 1, rows, 16)
    values[0, 0].fill_diagonal_(1.0)
    mask = torch.zeros(1, 1, 1, rows)
    mask[..., 0], mask[..., -1] = math.log(200), -math.inf
    found = run(
        ov,
        graph,
        result,
        torch.zeros(1, 1, 1, 16, dtype=dtype),
        torch.zeros_like(values).to(dtype),
        values.to(dtype),
        mask,
    )
    weights = found[0, 0, 0, :rows]
    assert weights[-1] == 0
    wanted = 1 / 206
    rounded = 1 / (math.exp(float(torch.tensor(math.log(200)).bfloat16())) + 6)
    assert abs(float(weights[1]) - wanted) < 0.5 * abs(rounded - wanted)


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 5e-3)])
def test_group_norm_is_exact_far_from_zero(ov: Any, mean: float, dtype: torch.dtype, bound: float) -> None:
    from kolors_sdxl.openvino_graph import Graph, group_norm

    draw = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 16, 5, 9, generator=draw) + mean).to(dtype)
    weight, bias = torch.randn(2, 16, generator=draw).to(dtype)
    graph = Graph()
    result = group_norm(graph.input(dtype, *x.shape), 4, weight, bias, 1e-5).float()
    wanted = F.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-5)
    assert error(run(ov, graph, result, x), wanted) <= bound


def run(ov: Any, graph: Any, result: Any, *given: Tensor) -> Tensor:
    from kolors_sdxl.openvino_graph import shared

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = ov.Core().compile_model(graph.finish(result), "CPU", settings).create_infer_request()
    for place, tensor in enumerate(given):
        request.set_input_tensor(place, shared(tensor))
    request.infer()
    return torch.from_numpy(request.get_output_tensor(0).data.copy())


def test_what_cannot_be_written_as_a_graph_is_named() -> None:
    from kolors_sdxl.openvino_graph import Graph

    x: Any = Graph().input(torch.float32, 2, 3)
    with pytest.raises(TypeError, match="relu"):
        F.relu(x)
    with pytest.raises(TypeError, match="index"):
        x[:, 1:]


def test_a_float32_net_never_runs_in_another_precision(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kolors_sdxl import openvino_unet

    monkeypatch.setattr(openvino_unet, "_precisions", lambda compiled: Counter({"bf16": 3, "f32": 1}))
    with pytest.raises(RunError, match=r"bf16 and f32.*sdxl_unet"):
        load("sdxl_unet_openvino", released).predict(*inputs())


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_refuses_dtypes_that_it_does_not_compute_in(dtype: str) -> None:
    with pytest.raises(RecipeError, match=rf"float32 or bfloat16.*{dtype}"):
        tiny().build(BuildContext(dtype=dtype), conditioning=TEXT, latents=LATENTS)


def test_refuses_other_devices() -> None:
    with pytest.raises(RecipeError, match=r"cuda:1.*sdxl_unet"):
        tiny().build(BuildContext("cuda:1"), conditioning=TEXT, latents=LATENTS)


@pytest.mark.parametrize(
    "setting", [{"attention": {"type": "reference"}}, {"geglu": {"type": "torch"}}, {"gradient_checkpointing": True}]
)
def test_refuses_settings_of_how_torch_computes(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} says how torch computes.*leave it out"):
        type(tiny()).model_validate(setting)


def test_says_how_to_install_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("kolors_sdxl.openvino_")]:
        if name != "kolors_sdxl.openvino_config":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependency, match=r"'sdxl_unet_openvino' needs .*kolors-kernel\[openvino\]"):
        tiny().build(BuildContext(), conditioning=TEXT, latents=LATENTS)


def tiny() -> Any:
    made: ComponentConfig = discover().find("backbone", "sdxl_unet_openvino").tiny()
    return made
