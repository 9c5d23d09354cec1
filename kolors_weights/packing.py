"""Linear layers and convolutions whose weights are laid out for oneDNN, once instead of at every call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection
from functools import cache
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from kolors_kernel.errors import RunError
from kolors_weights.precision import LARGEST_ERROR

_MKLDNN: Any = torch.backends.mkldnn  # its type stubs lack what is read here
_NAMES = {nn.Linear: "linear", nn.Conv2d: "convolution"}


class Packed(nn.Module, ABC):
    """A layer with a packed weight. Its state dict is that of the plain layer, which copies and pickles hold too."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.take(plain)

    @abstractmethod
    def plain(self) -> nn.Module:
        """Return the plain layer that this one stands for, with a weight of its own."""

    @abstractmethod
    def lay_out(self, plain: Any) -> None:
        """Lay out the weight of a layer that can be packed."""

    def take(self, plain: Any) -> None:
        """Stand for this plain layer from now on. Raises RunError where its weight cannot be packed."""
        if reason := reason_not_to_pack(plain):
            raise RunError(f"the weight cannot be packed: {reason}")
        self.lay_out(plain)

    def train(self, mode: bool = True) -> Self:
        """Raise RunError when asked to train: a packed weight has no gradient."""
        if mode:
            raise RunError("a packed layer does not train; unpack the module first")
        return super().train(mode)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (self.plain(),)

    def check(self, x: Tensor, weight: Tensor, product: Literal["matmul", "conv"]) -> None:
        """Raise RunError where a gradient is wanted, or where a setting of torch's would round float32."""
        if x.requires_grad and torch.is_grad_enabled():
            raise RunError("a packed layer passes no gradients; unpack the module first, or use torch.no_grad()")
        if weight.dtype == torch.float32 and (reason := _why_rounded(product, _precision(product))):
            raise RunError(f"packed float32 weights cannot be used now: {reason}")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.plain()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        plain = self.plain()
        plain._load_from_state_dict(*arguments)
        self.take(plain)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        plain: Any = self.plain()
        self.take(plain._apply(fn, recurse))
        return self


class PackedLinear(Packed):
    """A linear layer: [..., I] -> [..., O]."""

    def lay_out(self, plain: nn.Linear) -> None:
        """Lay out the weight of a layer that can be packed."""
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), None)
        self.bias = None if plain.bias is None else plain.bias.detach()

    def plain(self) -> nn.Linear:
        """Return the plain layer that this one stands for, with a weight of its own."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        _fill(layer, self.packed.to_dense(), self.bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Raise RunError where a gradient is wanted, or where a setting of torch's would round float32."""
        self.check(x, self.packed, "matmul")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out


class PackedConv2d(Packed):
    """A convolution: [B, C, h, w] -> [B, O, h', w'], channels last whatever it gets."""

    def lay_out(self, plain: nn.Conv2d) -> None:
        """Lay out the weight of a layer that can be packed."""
        names = ("in_channels", "out_channels", "kernel_size", "padding", "stride", "dilation", "groups")
        self.sizes = {name: getattr(plain, name) for name in names}
        self.place = plain.padding, plain.stride, plain.dilation, plain.groups
        weight = plain.weight.detach()
        # oneDNN lays out a convolution of one pixel for a size of pictures, and at others takes twenty times as long.
        self.pointwise = self.place == ((0, 0), (1, 1), (1, 1), 1) and plain.kernel_size == (1, 1)
        if self.pointwise:
            self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1), None)
        else:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.place)
        self.bias = None if plain.bias is None else plain.bias.detach()

    def plain(self) -> nn.Conv2d:
        """Return the plain layer that this one stands for, with a weight of its own."""
        layer = nn.Conv2d(**self.sizes, bias=self.bias is not None, device="meta")
        _fill(layer, self.packed.to_dense().view(layer.weight.shape), self.bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Raise RunError where a gradient is wanted, or where a setting of torch's would round float32."""
        self.check(x, self.packed, "matmul" if self.pointwise else "conv")
        if self.pointwise:
            rows: Tensor = torch.ops.mkldnn._linear_pointwise(
                x.permute(0, 2, 3, 1), self.packed, self.bias, "none", [], ""
            )
            return rows.permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *self.place, "none", [], "")
        return out


_PACKED: dict[type, type[Packed]] = {nn.Linear: PackedLinear, nn.Conv2d: PackedConv2d}


def pack(module: nn.Module, keep: Collection[nn.Module] = ()) -> str:
    """Replace every linear layer and convolution inside `module` but those to `keep`; say in words what was done.

    One at a time, so that no second copy of the weights is made; exact in float32 as in bfloat16. Layers that cannot
    be packed stay, and the words say why: not on a CPU, another dtype, a subclass, hooks, float32 that oneDNN rounds.
    """
    done, left = Counter[str](), Counter[str]()
    for parent, name in _children(module):
        layer = getattr(parent, name)
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer not in keep:
            if reason := reason_not_to_pack(layer):
                left[reason] += 1
            else:
                setattr(parent, name, _PACKED[type(layer)](layer))
                done[_NAMES[type(layer)]] += 1
    said = " and ".join(f"{count} {name}" for name, count in done.items())
    rest = [f"{count} not: {reason}" for reason, count in left.items()]
    return "; ".join([f"packed {said} layers for oneDNN" if done else "nothing is packed", *rest])


def unpack(module: nn.Module) -> None:
    """Put the plain layers back where `pack` replaced them."""
    for parent, name in _children(module):
        layer = getattr(parent, name)
        if isinstance(layer, Packed):
            setattr(parent, name, layer.plain())


def _children(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return parents and names: a list of the children themselves would keep those that are replaced in memory."""
    return [(parent, name) for parent in module.modules() for name, _ in parent.named_children()]


def reason_not_to_pack(layer: nn.Linear | nn.Conv2d) -> str | None:
    """Say why the weight of this layer cannot be packed here, or return None."""
    if type(layer) not in _PACKED:
        return f"{type(layer).__name__} is another class than torch's own"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "hooks would be lost"
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return "only numbers of zeros pad a packed convolution"
    weight = layer.weight
    if weight.device.type != "cpu":
        return f"the weights are on '{weight.device.type}', not on a CPU"
    if not _MKLDNN.is_available():
        return "this torch is built without oneDNN"
    if weight.dtype == torch.bfloat16:
        return None if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "this CPU has no bfloat16 that oneDNN can use"
    if weight.dtype != torch.float32:
        return f"weights of {weight.dtype} cannot be packed, only float32 and bfloat16"
    product = "matmul" if isinstance(layer, nn.Linear) else "conv"
    return _why_rounded(product, _precision(product))


def _fill(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight = nn.Parameter(weight)
    layer.bias = None if bias is None else nn.Parameter(bias)


def _precision(product: str) -> str:
    """Return what torch is set to let oneDNN do to float32 in "matmul" or "conv"."""
    settings = getattr(_MKLDNN, product, None)
    return torch.get_float32_matmul_precision() if settings is None else str(settings.fp32_precision)


@cache
def _why_rounded(product: str, precision: str) -> str | None:
    """Say by how much oneDNN rounds float32 here under this precision, which is in force; None if it does not.

    Found by trying, once in a process: only some CPUs use the leave that a setting or a variable of the environment
    gives, and they round a thousand times more coarsely.
    """
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, 320, generator=draw) for size in (128, 512))
    with torch.inference_mode(False), torch.no_grad():
        if product == "matmul":
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
            found = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        else:
            place = [0, 0], [1, 1], [1, 1], 1
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight[:, :, None, None], *place)
            image = x.mT.reshape(1, 320, 8, 16).contiguous(memory_format=torch.channels_last)
            found = torch.ops.mkldnn._convolution_pointwise(image, packed, None, *place, "none", [], "")
            found = found.flatten(2)[0].mT
    right = x.double() @ weight.double().mT
    error = float((found.double() - right).abs().max() / right.abs().max())
    return None if error <= LARGEST_ERROR else f"oneDNN rounds float32 here, '{product}' is off by {error:.0e}"
