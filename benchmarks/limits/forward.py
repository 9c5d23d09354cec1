"""A forward of the U-Net at its released size, and what stands around it in a step, as launches.

Before: torch's own operators, as they are called for the released layout. After: the kernels of this project, in the
launches that they are planned as, and what is not done at all: dividing by 1.0, and reading a text again in every step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from kolors_ops.add_layer_norm.native import TorchAddLayerNorm
from kolors_ops.geglu.native import TorchGEGLU
from kolors_ops.group_norm_silu.native import TorchGroupNormSiLU
from kolors_schedules.config import ScaledLinear
from kolors_sdxl.architecture import UNetArchitecture, UNetShape
from kolors_sdxl.backbone import random_unet
from kolors_sdxl.blocks import AttentionLayer, Ops, ResnetBlock
from kolors_sdxl.unet import UNet
from kolors_solvers.config import ClassifierFree, Euler
from torch import Tensor

from benchmarks.limits.counted import Counter, Launched
from benchmarks.limits.planned import PlannedOp
from kolors_kernel import BuildContext

RELEASED = UNetShape(UNetArchitecture(), context_width=4096, pooled_width=4096, channels=4, out_channels=4)
DTYPE = torch.bfloat16
TEXT = "text keys and values"
DIVISIONS = "divisions by 1.0"
COPIES, SUMS = "copies to another layout", "sums"
BIASES = "biases of convolutions"
STEP = "guidance and solver step"
_BY_PATH = (
    (r"attn2\.to_[kv]$|^encoder_hid_proj$", TEXT),
    (r"attn1\.to_", "self attention products"),
    (r"attn2\.to_", "cross attention products"),
    (r"\.ff\.net", "feed-forward products"),
    (r"proj_(in|out)$|_embedding\.|time_emb_proj$", "other products"),
)
_BY_NAME = (
    (r"aten::convolution", "convolutions"),
    (r"aten::add_?$", SUMS),
    (r"aten::cat", "concatenations"),
    (r"aten::upsample", "enlarging"),
)
_CONVOLUTION = r"(^|\.)conv[^.]*$"
_PRODUCT, _COPY = r"aten::(mm|addmm|bmm)$", r"aten::(clone|copy_)$"


@dataclass(frozen=True)
class Given:
    """What a forward is given: a batch, the sides of the latents, and the rows of the text."""

    batch: int = 2
    side: int = 128
    rows: int = 256

    def noisy(self, shape: UNetShape, *, batch: int) -> Tensor:
        """Return latents [B, C, h, w] without memory."""
        return torch.empty(batch, shape.channels, self.side, self.side, dtype=DTYPE, device="meta")


def before(given: Given, shape: UNetShape) -> list[Launched]:
    """Return the launches of a forward as torch does it, one operator after another."""
    counter = Counter()
    ops = Ops(
        _seam(counter, "attention", _flash),
        _seam(counter, "group_norm_silu", TorchGroupNormSiLU()),
        _seam(counter, "geglu", TorchGEGLU()),
        _seam(counter, "add_layer_norm", TorchAddLayerNorm()),
    )
    net = _net(shape, ops, counter)
    with _dividing(net, counter):
        return _forward(net, shape, given, counter, text=True)


def after(given: Given, family: str, shape: UNetShape, *, channels_last: bool = False) -> list[Launched]:
    """Return the launches of a forward with the kernels of this project, as planned for a family of GPUs.

    With the weights of convolutions in the layout of `channels_last`, if so asked.
    """
    counter = Counter()

    def planned(kind: str) -> Any:
        return _seam(counter, kind, PlannedOp(kind, family=family, counter=counter))

    attention = _seam(counter, "attention", _flash)
    net = _net(shape, Ops(attention, planned("group_norm_silu"), planned("geglu"), planned("add_layer_norm")), counter)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _forward(net, shape, given, counter, text=False)


def step(given: Given, shape: UNetShape) -> list[Launched]:
    """Return the launches of classifier-free guidance and a step of Euler's method around a forward."""
    return _walk(given, shape, steps=3)[len(_walk(given, shape, steps=2)) :]


def op_of(launch: Launched) -> str:
    """Return the op that a launch belongs to: what it was counted for, else what its module or its operator is."""
    if re.match(_COPY, launch.name):
        return COPIES
    if launch.op:
        return launch.op
    by_path = _BY_PATH if re.match(_PRODUCT, launch.name) else ()
    found = _first(by_path, launch.path) or _first(_BY_NAME, launch.name) or "embeddings"
    return BIASES if found == SUMS and re.search(_CONVOLUTION, launch.path) else found


def _first(table: Sequence[tuple[str, str]], text: str) -> str | None:
    return next((op for pattern, op in table if re.search(pattern, text)), None)


def _seam(counter: Counter, kind: str, op: Callable[..., Any]) -> Any:
    """Return an op that is counted by its kind and the shapes that it is called with."""

    def call(*given: Any, **how: Any) -> Any:
        with counter.during(kind, shape=_label(kind, given, how)):
            return op(*given, **how)

    return call


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend in the one kernel that torch takes on such GPUs; there is no mask where all rows of the text are real."""
    assert mask is None
    made: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return made


def _label(kind: str, call: tuple[Any, ...], how: dict[str, Any]) -> str:
    """Say at which shape an op is called, and what else tells its calls apart."""
    sizes = "x".join(map(str, call[0].shape))
    if kind == "attention":
        return f"{sizes} to {call[1].shape[2]}"
    if kind == "group_norm_silu" and not how.get("silu", True):
        return f"{sizes} no silu"
    if kind == "add_layer_norm" and call[1] is None:
        return f"{sizes} no sum"
    return sizes


def _net(shape: UNetShape, ops: Ops, counter: Counter) -> UNet:
    net = random_unet(shape, ops, device="meta").to(DTYPE)
    counter.watch(net)
    return net


def _forward(net: UNet, shape: UNetShape, given: Given, counter: Counter, *, text: bool) -> list[Launched]:
    """Run the net, after reading the text or with keys that are there already."""
    rows = torch.empty(given.batch, given.rows, shape.context_width, dtype=DTYPE, device="meta")
    pooled = torch.empty(given.batch, shape.pooled_width, dtype=DTYPE, device="meta")
    timesteps, size = (torch.empty(*sizes, device="meta") for sizes in ((given.batch,), (given.batch, 6)))
    with torch.no_grad(), torch.device("meta"), counter:
        if text:
            keys = net.context(rows)
        else:
            with counter.paused():
                keys = net.context(rows)
        net(given.noisy(shape, batch=given.batch), timesteps, keys, pooled, size)
    return counter.launched


@contextmanager
def _dividing(net: UNet, counter: Counter) -> Iterator[None]:
    """Divide what attention and residual blocks give by 1.0, as is done for the released layout."""

    def divide(module: object, inputs: object, result: Tensor) -> Tensor:
        with counter.during(DIVISIONS):
            return result / 1.0

    divided = [module for module in net.modules() if isinstance(module, (AttentionLayer, ResnetBlock))]
    handles = [module.register_forward_hook(divide) for module in divided]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _walk(given: Given, shape: UNetShape, *, steps: int) -> list[Launched]:
    """Return the launches of a walk from noise to latents, those of the net itself left out."""
    context, counter = BuildContext(), Counter()
    guidance, solver = ClassifierFree().build(context), Euler(steps=steps).build(context)
    schedule = ScaledLinear(steps=1100, beta_start=0.00085, beta_end=0.014).build(context)

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        with counter.paused():
            return torch.empty_like(x)

    noise = given.noisy(shape, batch=max(1, given.batch // 2))
    with counter.during(STEP), counter:
        solver.solve(guidance(denoise), noise, schedule)
    return counter.launched
