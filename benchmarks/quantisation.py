"""What weights of 8 and 4 bits cost the text encoder: error of tokens, pooled vector and final latents, and bits.

Errors are relative to the norm of what float32 weights give. The small model that ships is trained and has wide
latents to show it in; layers of the released width have random weights, which lack the outliers of trained ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from benchmarks.report import Note, Result, Row

if TYPE_CHECKING:
    from torch import Tensor, nn

Rewrite: TypeAlias = "Callable[[Tensor], Tensor]"
"""Weight [O, I] float32 -> what a form of fewer bits makes of it, [O, I] float32."""
Outcome: TypeAlias = "dict[str, Tensor]"

threads = 1
OURS: Mapping[str, tuple[int, int | None]] = {
    "int8": (8, None),
    "int4, groups of 32": (4, 32),
    "int4 (groups of 64)": (4, 64),
    "int4, groups of 128": (4, 128),
}
"""Bits, and how many columns share a scale; a row where None."""
PEERS = {8: ("torchao int8", "bitsandbytes int8"), 4: ("int4, a scale per row", "bitsandbytes nf4")}
"""Other forms of as many bits; the one with a scale per row is that of the files that are passed around."""
TOKENS = (2, 27)
"""Real tokens of the prompts in layers of the released width: the empty one, and one of usual length."""


@dataclass(frozen=True)
class Form:
    """A form of weights: what applies it to the linear layers of a module, and bits per weight, scales included."""

    apply: Callable[[nn.Module], None]
    bits: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured."""
    parser.add_argument("--steps", type=int, default=8, help="of the pictures that the small model draws")
    parser.add_argument("--width", type=int, default=4096, help="of the layers with random weights")
    parser.add_argument("--layers", type=int, default=4, help="of that width; the released model has 28")


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Measure all forms in the small model, then after each layer of the released width."""
    import torch

    forms = {name: _ours(bits, group) for name, (bits, group) in OURS.items()}
    forms["bfloat16"] = _rewriting(lambda weight: weight.bfloat16().float(), 16)
    forms["int4, a scale per row"] = _rewriting(_community, 4)
    for name, make in (("torchao int8", _torchao), ("bitsandbytes int8", _eight), ("bitsandbytes nf4", _nf4)):
        try:
            forms[name] = make()
        except ImportError as error:
            yield Note("quantisation", "all", name, str(error))
    with torch.no_grad():
        yield from _rows("small model", forms, dict(_small(forms, options.steps)))
        for depth, found in enumerate(_layers(forms, options.width, options.layers), start=1):
            yield from _rows(f"{options.width} wide, layer {depth}", forms, found)


def _rows(case: str, forms: Mapping[str, Form], found: Mapping[str, Outcome]) -> Iterator[Row]:
    errors = {name: _errors(found[name], found["float32"]) for name in forms}
    for name, (bits, _) in OURS.items():
        for peer in PEERS[bits]:
            if peer in forms:
                ours, theirs = errors[name], errors[peer]
                extra: dict[str, float | int | str] = {
                    **{f"ours_{key}": value for key, value in ours.items()},
                    **{f"peer_{key}": value for key, value in theirs.items()},
                    **{f"bfloat16_{key}": value for key, value in errors["bfloat16"].items()},
                    "peer_version": _version(peer.split()[0]),
                    "ours_bits": forms[name].bits,
                    "peer_bits": forms[peer].bits,
                }
                said = ", ".join(f"{key} {value:.2%}" for key, value in ours.items() if key.endswith("error"))
                remark = f"{said}; {forms[name].bits:.2f} bits"
                one, other = ours["tokens_error"] * 100, theirs["tokens_error"] * 100
                yield Row("quantisation", case, name, one, peer, other, "%", other / one, extra=extra, remark=remark)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""  # a form that is computed here


def _errors(found: Outcome, right: Outcome) -> dict[str, float]:
    import torch.nn.functional as F

    made = {}
    for key, wanted in right.items():
        made[f"{key}_error"] = float((found[key] - wanted).norm() / wanted.norm())
        attended = wanted.flatten(0, -2).norm(dim=-1) > 0
        alike = F.cosine_similarity(found[key].flatten(0, -2), wanted.flatten(0, -2), dim=-1)
        made[f"{key}_least_cosine"] = float(alike[attended].min())
    return made


def _small(forms: Mapping[str, Form], steps: int) -> Iterator[tuple[str, Outcome]]:
    """Yield tokens, pooled vectors and final latents of the quickstart's prompts, under each form."""
    import torch
    from kolors_recipes.drawing import PARTS, TEXT_TO_IMAGE

    from kolors_kernel import BuildContext, load_recipe
    from kolors_kernel.graph import Graph

    recipe: Any = load_recipe("quickstart", {"solver.steps": steps})
    ctx, latents = BuildContext(), recipe.autoencoder.spec()
    parts = {name: getattr(recipe, name).build(ctx) for name in ("schedule", "solver", "guidance")}
    parts["backbone"] = recipe.backbone.build(ctx, conditioning=recipe.text_encoder.spec(), latents=latents)
    prompts = [prompt if isinstance(prompt, str) else prompt.prompt for prompt in recipe.prompts]
    captions = [""] * len(prompts) + prompts
    inputs = ("captions", "noise", "size", "random", "tick")
    graph = Graph(TEXT_TO_IMAGE, inputs=inputs, outputs=("conditioning", "latents"), parts=PARTS)
    sides = (recipe.height, recipe.width)
    for name in ("float32", *forms):
        encoder = recipe.text_encoder.build(ctx)
        if name in forms:
            forms[name].apply(encoder.module)
        draw = torch.Generator().manual_seed(0)
        shape = (len(prompts), latents.channels, *(side // latents.downscale for side in sides))
        text, drawn = graph.run(
            captions=captions,
            noise=torch.randn(shape, generator=draw),
            size=torch.tensor([*sides, 0, 0, *sides], dtype=torch.float32).expand(len(captions), -1),
            random=draw,
            tick=lambda: None,
            text_encoder=encoder,
            **parts,
        )
        yield name, {"tokens": text.tokens, "pooled": text.pooled, "latents": drawn.flatten(1)}


def _layers(forms: Mapping[str, Form], width: int, layers: int) -> Iterator[dict[str, Outcome]]:
    """Yield the hidden states after each layer: one layer in memory at a time, and that in one form besides."""
    import torch
    from kolors_chatglm3.architecture import RELEASED
    from kolors_chatglm3.attending import EVERY_SLOT, attention_blocks, rotation
    from kolors_chatglm3.model import Layer
    from kolors_chatglm3.slots import Slots, merge_padding

    from benchmarks.layouts import encoder_ops
    from kolors_weights.modules import without_weights

    heads = width // RELEASED.kv_channels
    inner = RELEASED.ffn_hidden_size * width // RELEASED.hidden_size
    sizes = {"hidden_size": width, "ffn_hidden_size": inner, "num_attention_heads": heads}
    architecture = RELEASED.model_copy(update=sizes)
    slots = merge_padding(Slots.of([range(tokens) for tokens in TOKENS], pad=0, least=256))
    turns = rotation(slots.positions, architecture.kv_channels, torch.float32)
    blocks, draw = attention_blocks(slots, torch.float32), torch.Generator().manual_seed(0)
    table = torch.randn(max(TOKENS), width, generator=draw)
    hidden = dict.fromkeys(("float32", *forms), table[slots.ids])
    for _ in range(layers):
        layer = _random_layer(architecture, draw)
        for name, states in hidden.items():
            with without_weights():
                under = Layer(architecture, encoder_ops())
            under.load_state_dict(layer.state_dict(), assign=True)
            if name in forms:
                forms[name].apply(under)
            hidden[name] = under(states, turns, blocks, EVERY_SLOT)
        yield {name: {"tokens": states, "pooled": states[slots.ends() - 1]} for name, states in hidden.items()}


def _random_layer(architecture: Any, draw: Any) -> nn.Module:
    """Return a layer as a model to train from scratch has it, of all its layers."""
    from kolors_chatglm3.model import ChatGLM3Model

    from benchmarks.layouts import encoder_ops
    from kolors_weights.modules import without_weights

    one = architecture.model_copy(update={"num_layers": 1, "padded_vocab_size": 1})
    with without_weights():
        model = ChatGLM3Model(one, encoder_ops())
    model.to_empty(device="cpu")
    model.initialise(draw)
    layer = model.encoder.layers[0]
    for name in ("self_attention.dense", "mlp.dense_4h_to_h"):  # what adds to the stream
        cast(Any, layer.get_submodule(name)).weight.div_(architecture.num_layers**0.5)
    return layer


def _ours(bits: int, group: int | None) -> Form:
    from kolors_weights.quantizing import Bits, quantize_linears

    # A bfloat16 per group; a row of the released widths is so long that its own does not count.
    return Form(
        lambda module: quantize_linears(module, cast(Bits, bits), group=group), bits + (16 / group if group else 0)
    )


def _rewriting(rewrite: Rewrite, bits: float) -> Form:
    """Return a form that is applied by writing into plain layers what it stands for."""
    import torch
    from torch import nn

    def apply(module: nn.Module) -> None:
        for child in module.modules():
            if isinstance(child, nn.Linear):
                blocks = [rewrite(rows) for rows in torch.split(child.weight.detach(), 256)]
                child.weight = nn.Parameter(torch.cat(blocks))

    return Form(apply, bits)


def _community(weight: Tensor) -> Tensor:
    scale = (weight.abs().amax(1, keepdim=True) / 7).half().float()
    return (weight / scale).round().clamp(-8, 7) * scale


def _torchao() -> Form:
    import torch
    from torch import nn

    quantization: Any = import_module("torchao.quantization")

    def rewrite(weight: Tensor) -> Tensor:
        layer = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta"))
        layer[0].weight = nn.Parameter(weight)
        quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
        made: Tensor = cast(Any, layer[0].weight).dequantize()
        return made.to(torch.float32)

    return _rewriting(rewrite, 8)


def _eight() -> Form:
    functional: Any = import_module("bitsandbytes.functional")

    def rewrite(weight: Tensor) -> Tensor:
        whole, scale, _ = functional.int8_vectorwise_quant(weight.half())
        made: Tensor = functional.int8_vectorwise_dequant(whole, scale)
        return made.float()

    return _rewriting(rewrite, 8)


def _nf4() -> Form:
    functional: Any = import_module("bitsandbytes.functional")

    def rewrite(weight: Tensor) -> Tensor:
        made: Tensor = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4", blocksize=64))
        return made

    return _rewriting(rewrite, 4 + 32 / 64)
