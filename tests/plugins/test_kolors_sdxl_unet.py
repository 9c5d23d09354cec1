from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from kolors_sdxl.architecture import UNetArchitecture, UNetShape, unet_from_layout, unet_to_layout
from kolors_sdxl.backbone import SDXLUNetBackbone
from kolors_sdxl.blocks import AttentionLayer, Ops, TransformerLayer
from kolors_sdxl.config import SDXLUNet
from kolors_sdxl.unet import UNet
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from kolors_kernel import BuildContext
from kolors_kernel.errors import RunError, WeightsError
from kolors_kernel.values import Conditioning, ConditioningSpec, LatentSpec
from kolors_weights.modules import fit
from kolors_weights.packing import unpack
from kolors_weights.reading import open_state, read_config
from kolors_weights.writing import write_state

TEXT, LATENTS = ConditioningSpec(tokens=7, width=24, pooled=20), LatentSpec(channels=4, downscale=8)
STEM = "diffusion_pytorch_model"
Peer = Callable[..., UNet2DConditionModel]


@pytest.fixture(scope="module")
def released(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that diffusers saved a Kolors-shaped U-Net in."""
    folder = tmp_path_factory.mktemp("unet")
    peer().save_pretrained(folder)
    return folder


def load(path: Path | None, dtype: str = "float32", **settings: Any) -> SDXLUNetBackbone:
    return SDXLUNet(path=path, **settings).build(BuildContext(dtype=dtype), conditioning=TEXT, latents=LATENTS)


def inputs(dtype: torch.dtype, height: int = 12, width: int = 8) -> tuple[Tensor, Tensor, Conditioning, Tensor]:
    random = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, TEXT.tokens, TEXT.width, generator=random, dtype=dtype)
    pooled = torch.randn(2, TEXT.pooled, generator=random, dtype=dtype)
    noisy = torch.randn(2, LATENTS.channels, height, width, generator=random, dtype=dtype)
    size = torch.tensor([[1024.0, 768.0, 0.0, 13.0, 512.0, 640.0], [333.0, 2000.0, 7.0, 0.0, 1024.0, 1024.0]])
    return noisy, torch.tensor([3, 1099]), Conditioning(tokens, pooled), size


def ask_peer(net: UNet2DConditionModel, noisy: Tensor, t: Tensor, text: Conditioning, size: Tensor) -> Tensor:
    added = {"text_embeds": text.pooled, "time_ids": size}
    # The peer takes a mask m and adds -10000 (1 - m) to the scores.
    mask = None if text.key_bias is None else 1 + text.key_bias / 10_000
    with torch.no_grad():
        out: Tensor = net(noisy, t, text.tokens, added_cond_kwargs=added, encoder_attention_mask=mask).sample
    return out


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_has_as_many_parameters_as_the_released_net() -> None:
    nothing: Any = None
    with torch.device("meta"):
        net = UNet(UNetShape(UNetArchitecture(), 4096, 4096, 4, 4), Ops(nothing, nothing, nothing, nothing))
    assert sum(p.numel() for p in net.parameters()) == 2_579_458_820
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert parts == {
        "conv_in": 11_840,
        "time_embedding": 2_050_560,
        "encoder_hid_proj": 8_390_656,
        "add_embedding": 8_849_920,
        "down_blocks": 822_941_760,
        "mid_block": 413_117_440,
        "up_blocks": 1_324_084_480,
        "conv_norm_out": 640,
        "conv_out": 11_524,
    }


# The peer embeds times and sizes in float32 whatever it computes in. So do we, operation for operation, since the
# weights were trained on those numbers; nothing else is in float32, and the float64 bound needs no allowance for it.
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-9)])
@pytest.mark.parametrize(("height", "width"), [(12, 8), (7, 18)])
def test_predicts_what_diffusers_predicts(released: Path, dtype: str, bound: float, height: int, width: int) -> None:
    asked = inputs(getattr(torch, dtype), height, width)
    net = UNet2DConditionModel.from_pretrained(released, torch_dtype=getattr(torch, dtype))
    with torch.no_grad():
        found = load(released, dtype).predict(*asked)
    assert error(found, ask_peer(net, *asked)) <= bound


def test_adds_the_key_bias_that_diffusers_adds(released: Path) -> None:
    noisy, t, text, size = inputs(torch.float64)
    bias = torch.randn(2, TEXT.tokens, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    biased = Conditioning(text.tokens, text.pooled, bias)
    net = UNet2DConditionModel.from_pretrained(released, torch_dtype=torch.float64)
    with torch.no_grad():
        found = load(released, "float64").predict(noisy, t, biased, size)
    assert error(found, ask_peer(net, noisy, t, biased, size)) <= 1e-9
    assert error(found, ask_peer(net, noisy, t, text, size)) > 1e-6


def test_one_row_with_a_key_bias_stands_for_many_equal_rows(released: Path) -> None:
    noisy, t, text, size = inputs(torch.float64)
    many = torch.cat([text.tokens[:, :1].expand(-1, 5, -1), text.tokens[:, 1:]], dim=1)
    bias = torch.zeros(2, TEXT.tokens, dtype=torch.float64)
    bias[:, 0] = torch.tensor(5.0, dtype=torch.float64).log()
    ours = load(released, "float64")
    with torch.no_grad():
        wanted = ours.predict(noisy, t, Conditioning(many, text.pooled), size)
        merged = ours.predict(noisy, t, Conditioning(text.tokens, text.pooled, bias), size)
        unbiased = ours.predict(noisy, t, text, size)
    assert error(merged, wanted) <= 1e-12
    assert error(unbiased, wanted) > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_text_is_read_once_for_all_steps(released: Path, dtype: str) -> None:
    ours, (noisy, t, text, size) = load(released, dtype), inputs(torch.float32)
    reads: list[Tensor] = []
    projection = ours.module.get_submodule("encoder_hid_proj")
    projection.register_forward_hook(lambda module, taken, given: reads.append(given))
    first = ours.predict(noisy, t, text, size)
    assert torch.equal(ours.predict(noisy, t, Conditioning(text.tokens, text.pooled), size), first)
    assert len(reads) == 1
    assert torch.equal(ours.predict(noisy, t, Conditioning(text.tokens.clone(), text.pooled), size), first)
    assert len(reads) == 2


def _write(ours: SDXLUNetBackbone, text: Conditioning) -> None:
    text.tokens.add_(1.0)


def _train(ours: SDXLUNetBackbone, text: Conditioning) -> None:
    weight = ours.module.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()


def _load(ours: SDXLUNetBackbone, text: Conditioning, *, assign: bool = False) -> None:
    ours.module.load_state_dict({k: 2 * v for k, v in ours.module.state_dict().items()}, assign=assign)


def _assign(ours: SDXLUNetBackbone, text: Conditioning) -> None:
    _load(ours, text, assign=True)


def _round(ours: SDXLUNetBackbone, text: Conditioning) -> None:
    ours.module.to(torch.bfloat16).to(torch.float32)


def _wrap(ours: SDXLUNetBackbone, text: Conditioning) -> None:
    attention: Any = ours.module.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")
    narrow = len(attention.to_v.weight)
    attention.to_v = nn.Sequential(attention.to_v, nn.Linear(narrow, narrow))


@torch.no_grad()
@pytest.mark.parametrize("change", [_write, _train, _load, _assign, _round, _wrap])
def test_no_key_outlives_a_change(released: Path, change: Callable[[SDXLUNetBackbone, Conditioning], None]) -> None:
    ours, (noisy, t, text, size) = load(released), inputs(torch.float32)
    before = ours.predict(noisy, t, text, size)
    change(ours, text)
    after = ours.predict(noisy, t, text, size)
    fresh = ours.predict(noisy, t, Conditioning(text.tokens.clone(), text.pooled), size)
    assert torch.equal(after, fresh)
    assert not torch.equal(after, before)


def test_keys_are_neither_kept_for_nor_taken_from_a_pass_with_gradients(released: Path) -> None:
    ours, (noisy, t, text, size) = load(released), inputs(torch.float32)
    with torch.no_grad():
        ours.predict(noisy, t, text, size)
    for _ in range(2):
        ours.module.zero_grad()
        ours.predict(noisy, t, text, size).sum().backward()
        gradient = ours.module.get_parameter("encoder_hid_proj.weight").grad
        assert gradient is not None and gradient.abs().sum() > 0


def test_keys_of_one_precision_do_not_serve_another(released: Path) -> None:
    ours, (noisy, t, text, size) = load(released), inputs(torch.float32)
    with torch.no_grad():
        wanted = ours.predict(noisy, t, text, size)
        with torch.autocast("cpu", torch.bfloat16):
            assert 0 < error(ours.predict(noisy, t, text, size), wanted) < 5e-2
        assert torch.equal(ours.predict(noisy, t, text, size), wanted)
    with torch.inference_mode():
        assert torch.equal(ours.predict(noisy, t, Conditioning(text.tokens + 0, text.pooled), size), wanted)


def frozen(path: Path, dtype: str = "float32") -> SDXLUNetBackbone:
    ours = load(path, dtype)
    ours.freeze()
    return ours


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(12, 8), (7, 18)])
def test_a_frozen_net_predicts_what_diffusers_predicts(released: Path, height: int, width: int) -> None:
    asked = inputs(torch.float32, height, width)
    net = UNet2DConditionModel.from_pretrained(released)
    assert error(frozen(released).predict(*asked), ask_peer(net, *asked)) <= 1e-5


@torch.no_grad()
def test_a_frozen_net_errs_in_bfloat16_no_more_than_diffusers(released: Path) -> None:
    asked = inputs(torch.bfloat16)
    ours, half = frozen(released, "bfloat16"), UNet2DConditionModel.from_pretrained(released).to(torch.bfloat16)
    noisy, t, text, size = asked
    exact = ask_peer(half.double(), noisy.double(), t, Conditioning(text.tokens.double(), text.pooled.double()), size)
    theirs = ask_peer(half.to(torch.bfloat16), *asked)
    assert error(ours.predict(*asked), exact) <= 1.1 * error(theirs, exact)


@torch.no_grad()
def test_freezing_keeps_every_bit_that_is_saved(released: Path, tmp_path: Path) -> None:
    ours = frozen(released)
    ours.save(tmp_path)
    before, after = (open_state(folder / f"{STEM}.safetensors") for folder in (released, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    asked = inputs(torch.float32)
    wanted = ours.predict(*asked)
    ours.freeze()
    assert torch.equal(ours.predict(*asked), wanted)


@torch.no_grad()
def test_weights_loaded_into_a_frozen_net_are_those_it_uses(peer: Peer, released: Path) -> None:
    ours, asked = frozen(released), inputs(torch.float32)
    before = ours.predict(*asked)
    changed = peer()
    for parameter in changed.parameters():
        parameter.mul_(1.5)
    ours.module.load_state_dict(changed.state_dict())
    after = ours.predict(*asked)
    assert error(after, ask_peer(changed, *asked)) <= 1e-5 < error(after, before)
    for key in ("encoder_hid_proj.bias", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"):
        ours.module.get_parameter(key).mul_(2)
        changed.get_parameter(key).mul_(2)
    assert error(ours.predict(*asked), ask_peer(changed, *asked)) <= 1e-5


@torch.no_grad()
def test_a_frozen_net_is_copied_and_thawed(released: Path) -> None:
    ours, asked = frozen(released), inputs(torch.float32)
    wanted = ours.predict(*asked)
    made = copy.deepcopy(ours)
    assert torch.equal(made.predict(*asked), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(ours.module))(*_as_net_takes(ours, *asked)), wanted)
    unpack(made.module)
    assert torch.equal(made.predict(*asked), load(released).predict(*asked))
    assert torch.equal(ours.predict(*asked), wanted)


def _as_net_takes(
    ours: SDXLUNetBackbone, noisy: Tensor, t: Tensor, text: Conditioning, size: Tensor
) -> tuple[object, ...]:
    net: Any = ours.module
    return noisy, t, net.context(text.tokens), text.pooled, size


def test_a_frozen_net_does_not_train_and_says_so(released: Path) -> None:
    ours, (noisy, t, text, size) = frozen(released), inputs(torch.float32)
    with pytest.raises(RunError, match="unpack the module first"):
        ours.module.train()
    with pytest.raises(RunError, match="unpack the module first"):
        ours.predict(noisy.requires_grad_(), t, text, size)


@torch.no_grad()
def test_reports_which_path_ran_and_why_not_a_faster_one(released: Path) -> None:
    ours, asked = load(released), inputs(torch.float32)
    assert "freeze() packs them" in ours.report()["weights"]
    assert ours.report()["attention"] == "nothing has run yet"
    ours.freeze()
    ours.predict(*asked)
    said = ours.report()
    layers = {kind: sum(type(m) is kind for m in load(released).module.modules()) for kind in (nn.Conv2d, nn.Linear)}
    sites = sum(isinstance(m, TransformerLayer) for m in ours.module.modules())
    rest = layers[nn.Linear] - 1 - 3 * sites  # the text's projection, keys and values stay; gates are told apart
    assert said["weights"] == f"packed {layers[nn.Conv2d]} convolution and {rest} linear layers for oneDNN"
    assert said["geglu"].startswith(f"inside {sites} packed products")
    no_gpu = " (passed over: triton: the tensors are on a CPU, not on a GPU)"
    assert said["attention"] == f"blocked{no_gpu}"
    assert said["group_norm_silu"] == said["add_layer_norm"] == f"torch{no_gpu}"
    exact = load(released, "float64", group_norm_silu={"type": "reference"})
    exact.freeze()
    exact.predict(*inputs(torch.float64))
    said = exact.report()
    assert "nothing is packed" in said["weights"] and "float64" in said["weights"]
    assert "recomputed" in said["attention"] and "float64" in said["attention"]
    assert said["group_norm_silu"] == "ReferenceGroupNormSiLU"


@torch.no_grad()
def test_a_compiled_net_is_one_graph_that_is_not_packed(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile

    def without_kernels(net: Any) -> Any:  # making them takes minutes
        return compiler(net, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", without_kernels)
    ours, asked = load(None, architecture=SDXLUNet.tiny().architecture, compile=True), inputs(torch.float32)
    plain = load(None, architecture=SDXLUNet.tiny().architecture)
    plain.module.load_state_dict(ours.module.state_dict())
    ours.freeze()
    assert "torch.compile" in ours.report()["weights"]
    assert {type(m) for m in ours.module.modules()} == {type(m) for m in plain.module.modules()}
    assert error(ours.predict(*asked), plain.predict(*asked)) <= 1e-6


class MaskSpy:
    """Attention that keeps the masks it is given."""

    def __init__(self, op: Any) -> None:
        self.op = op
        self.masks: list[Tensor] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        self.masks += [] if mask is None else [mask]
        out: Tensor = self.op(q, k, v, mask)
        return out


@torch.no_grad()
def test_the_log_of_a_count_reaches_attention_unrounded_in_bfloat16(released: Path) -> None:
    ours, (noisy, t, text, size) = load(released, "bfloat16"), inputs(torch.float32)
    attentions = [m for m in ours.module.modules() if isinstance(m, AttentionLayer)]
    spy = MaskSpy(attentions[0].op)
    for attention in attentions:
        attention.op = spy
    bias = torch.zeros(2, TEXT.tokens)
    bias[:, 0] = math.log(226)
    ours.predict(noisy, t, Conditioning(text.tokens, text.pooled, bias), size)
    assert len(spy.masks) == len(attentions) // 2
    counts = [round(float(mask.double().exp()[0, 0, 0, 0]), 3) for mask in spy.masks]
    assert set(counts) == {226.0}
    assert abs(float(bias.bfloat16().double().exp()[0, 0]) - 226) > 1  # what rounding would have made of it


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_inpainting_net_predicts_what_diffusers_predicts(peer: Peer, tmp_path: Path, dtype: str) -> None:
    kind = getattr(torch, dtype)
    net = peer(in_channels=9).to(kind)
    net.save_pretrained(tmp_path)
    given = LatentSpec(channels=4, downscale=8, given=5)
    ours = SDXLUNet(path=tmp_path).build(BuildContext(dtype=dtype), conditioning=TEXT, latents=given)
    _, t, text, size = inputs(kind)
    noisy = torch.randn(2, 9, 12, 8, generator=torch.Generator().manual_seed(5), dtype=kind)
    with torch.no_grad():
        found = ours.predict(noisy, t, text, size)
    assert found.shape == (2, 4, 12, 8)
    assert error(found, ask_peer(net, noisy, t, text, size)) <= {"float32": 1e-5, "float64": 1e-9}[dtype]


def test_says_which_net_is_an_inpainting_net(peer: Peer, released: Path, tmp_path: Path) -> None:
    given = LatentSpec(channels=4, downscale=8, given=5)
    said = str(SDXLUNet(path=released).misfit(TEXT, given))
    assert "no inpainting net" in said and "5" in said and str(released) in said
    peer(in_channels=9).save_pretrained(tmp_path)
    said = str(SDXLUNet(path=tmp_path).misfit(TEXT, LATENTS))
    assert "an inpainting net" in said and "5" in said and str(tmp_path) in said
    assert SDXLUNet(path=tmp_path).misfit(TEXT, given) is None
    assert SDXLUNet.tiny().misfit(TEXT, given) is None


def test_runs_in_bfloat16_and_answers_in_the_dtype_asked(released: Path) -> None:
    asked = inputs(torch.float32)
    with torch.no_grad():
        half, full = load(released, "bfloat16").predict(*asked), load(released).predict(*asked)
    assert half.dtype == torch.float32
    assert 0 < error(half, full) < 5e-2


def test_loads_float16_files_in_the_dtype_asked(peer: Peer, tmp_path: Path) -> None:
    peer().half().save_pretrained(tmp_path, variant="fp16")
    assert [file.name for file in tmp_path.glob("*.safetensors")] == [f"{STEM}.fp16.safetensors"]
    ours = load(tmp_path)
    assert {p.dtype for p in ours.module.parameters()} == {torch.float32}
    assert error(ours.module.state_dict()["conv_in.weight"], peer().conv_in.weight.detach()) < 1e-3


def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(released: Path) -> None:
    asked, kept, gradients = inputs(torch.float64), [], []
    for checkpointing in (False, True):
        ours = load(released, "float64", gradient_checkpointing=checkpointing)
        saved: list[int] = []

        def pack(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = ours.predict(*asked).square().mean()
        kept.append(sum(saved))
        loss.backward()
        gradients.append({name: p.grad for name, p in ours.module.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1]) == set(ours.module.state_dict())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert kept[1] < kept[0] / 2


def test_gradients_are_those_of_diffusers(released: Path) -> None:
    noisy, t, text, size = inputs(torch.float64)
    net = UNet2DConditionModel.from_pretrained(released, torch_dtype=torch.float64)
    added = {"text_embeds": text.pooled, "time_ids": size}
    net(noisy, t, text.tokens, added_cond_kwargs=added).sample.square().mean().backward()
    ours = load(released, "float64")
    ours.predict(noisy, t, text, size).square().mean().backward()
    wanted = {name: p.grad for name, p in net.named_parameters()}
    for name, parameter in ours.module.named_parameters():
        assert parameter.grad is not None and wanted[name] is not None
        assert error(parameter.grad, wanted[name]) <= 1e-9, name


def test_diffusers_loads_what_we_save(released: Path, tmp_path: Path) -> None:
    asked = inputs(torch.float32)
    made = SDXLUNet.tiny().build(BuildContext(), conditioning=TEXT, latents=LATENTS)
    made.save(tmp_path / "new" / "folder")
    net = UNet2DConditionModel.from_pretrained(tmp_path / "new" / "folder")
    with torch.no_grad():
        found = made.predict(*asked)
        assert error(found, ask_peer(net, *asked)) <= 1e-5
        assert torch.equal(load(tmp_path / "new" / "folder").predict(*asked), found)


def test_saving_a_loaded_net_keeps_every_bit_and_every_setting(released: Path, tmp_path: Path) -> None:
    load(released).save(tmp_path)
    before, after = (open_state(folder / f"{STEM}.safetensors") for folder in (released, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    old, new = read_config(released), read_config(tmp_path)
    assert {key for key in new if key[0] != "_" and new[key] != old[key]} == {"sample_size"}


@pytest.mark.parametrize("path_to_weights", [{"safe_serialization": False}, {"max_shard_size": "100KB"}])
def test_loads_pickles_of_tensors_and_shards(released: Path, tmp_path: Path, path_to_weights: dict[str, Any]) -> None:
    UNet2DConditionModel.from_pretrained(released).save_pretrained(tmp_path, **path_to_weights)
    assert not (tmp_path / f"{STEM}.safetensors").exists()
    found, wanted = load(tmp_path).module.state_dict(), load(released).module.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_says_both_widths_and_the_way_out_when_the_text_does_not_fit(released: Path) -> None:
    config = SDXLUNet(path=released)
    assert config.misfit(TEXT, LATENTS) is None
    for other, widths in (
        (ConditioningSpec(tokens=7, width=768, pooled=20), ("24", "768")),
        (ConditioningSpec(tokens=7, width=24, pooled=1280), ("20", "1280")),
    ):
        said = config.misfit(other, LATENTS)
        assert said is not None and all(text in said for text in (*widths, "context_projection: new", str(released)))
        with pytest.raises(WeightsError, match="context_projection: new"):
            config.build(BuildContext(), conditioning=other, latents=LATENTS)
        assert SDXLUNet(path=released, context_projection="new").misfit(other, LATENTS) is None
    assert "16" in str(SDXLUNet(path=released, context_projection="new").misfit(TEXT, LatentSpec(16, 8)))


def test_a_new_context_projection_keeps_everything_that_does_not_read_text(released: Path, tmp_path: Path) -> None:
    other = ConditioningSpec(tokens=3, width=10, pooled=6)
    config = SDXLUNet(path=released, context_projection="new")
    made = config.build(BuildContext(), conditioning=other, latents=LATENTS)
    old, new = load(released).module.state_dict(), made.module.state_dict()
    assert {key for key in old if old[key].shape != new[key].shape or not torch.equal(old[key], new[key])} == {
        "encoder_hid_proj.weight",
        "encoder_hid_proj.bias",
        "add_embedding.linear_1.weight",
    }
    sizes = 6 * 8
    assert torch.equal(
        old["add_embedding.linear_1.weight"][:, -sizes:], new["add_embedding.linear_1.weight"][:, -sizes:]
    )
    noisy, t, _, size = inputs(torch.float32)
    text = Conditioning(torch.randn(2, 3, 10), torch.randn(2, 6))
    made.save(tmp_path)
    again = SDXLUNet(path=tmp_path).build(BuildContext(), conditioning=other, latents=LATENTS)
    with torch.no_grad():
        assert torch.equal(made.predict(noisy, t, text, size), again.predict(noisy, t, text, size))


def test_plain_sdxl_has_no_projection_and_can_be_given_one(peer: Peer, tmp_path: Path) -> None:
    net = peer(encoder_hid_dim=None, encoder_hid_dim_type=None, cross_attention_dim=TEXT.width)
    net.save_pretrained(tmp_path)
    asked = inputs(torch.float32)
    with torch.no_grad():
        assert error(load(tmp_path).predict(*asked), ask_peer(net, *asked)) <= 1e-5
    made = load(tmp_path, context_projection="new")
    assert made.module.state_dict()["encoder_hid_proj.weight"].shape == (TEXT.width, TEXT.width)
    said = SDXLUNet(architecture=UNetArchitecture(text_projection=False)).misfit(TEXT, LATENTS)
    assert said is not None and "2048" in said and "24" in said and "text_projection" in said


def test_refuses_nets_it_would_compute_wrongly(peer: Peer, tmp_path: Path) -> None:
    peer(act_fn="gelu").save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"config\.json describes another net: act_fn is 'gelu', only 'silu'"):
        SDXLUNet(path=tmp_path).misfit(TEXT, LATENTS)


def test_names_every_key_that_is_missing_extra_or_misshapen(released: Path, tmp_path: Path) -> None:
    state = dict(open_state(released / f"{STEM}.safetensors"))
    del state["conv_in.bias"]
    state["stray"] = torch.zeros(1)
    state["conv_out.weight"] = torch.zeros(4, 3)
    write_state(tmp_path, state, read_config(released), stem=STEM)
    with pytest.raises(WeightsError) as caught:
        load(tmp_path)
    for text in (f"{STEM}.safetensors", "conv_in.bias", "stray", "conv_out.weight is [4, 3], should be [4, 16, 3, 3]"):
        assert text in str(caught.value)


def test_a_failed_fit_leaves_the_module_as_it_was() -> None:
    layer = nn.Linear(2, 3)
    before = layer.weight.detach().clone()
    with pytest.raises(WeightsError, match="1 missing: bias"):
        fit(layer, {"weight": torch.zeros(3, 2)}, where=Path("somewhere"))
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": (5, 10)}, "same resolutions"),
        ({"block_channels": (320, 640, 1290)}, "32 groups"),
        ({"heads": (5, 10, 19)}, "19 heads"),
        ({"transformer_layers": (0, 2, 0)}, "last resolution"),
    ],
)
def test_refuses_architectures_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        UNetArchitecture(**changes)


def test_refuses_two_sources_of_the_architecture(released: Path) -> None:
    with pytest.raises(ValueError, match=r"both given"):
        SDXLUNet(path=released, architecture=UNetArchitecture())


def test_reads_the_released_description_as_its_default(tmp_path: Path) -> None:
    released = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.27.0.dev0",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": 5632,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    }
    shape = unet_from_layout(released, where=tmp_path)
    assert shape == UNetShape(UNetArchitecture(), context_width=4096, pooled_width=4096, channels=4, out_channels=4)
    written = unet_to_layout(shape)
    assert {key: written[key] for key in released if key[0] != "_"} == {k: released[k] for k in released if k[0] != "_"}
    for absent in ("use_linear_projection", "projection_class_embeddings_input_dim"):
        with pytest.raises(WeightsError, match=absent):
            unet_from_layout({key: released[key] for key in released if key != absent}, where=tmp_path)
