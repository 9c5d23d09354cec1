"""Writing a torch module down as an OpenVINO graph, by running it on tensors that have a shape but no values.

OpenVINO's own reader of torch modules takes half a minute for a small net, and leaves the form of each operation to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import openvino
import torch
from openvino import opset15 as op
from torch import Tensor
from torch.nn import functional as F

TYPES = {torch.float32: openvino.Type.f32, torch.bfloat16: openvino.Type.bf16}
"""What a graph can be written in."""
_DTYPES = {kind.get_type_name(): dtype for dtype, kind in TYPES.items()}
Number: TypeAlias = "GraphTensor | Tensor | float"


def shared(tensor: Tensor) -> openvino.Tensor:
    """Return a contiguous tensor on the CPU as OpenVINO's, of the same memory; the caller keeps it alive."""
    plain = tensor.detach()
    if plain.dtype == torch.bfloat16:  # numpy has none
        return openvino.Tensor(plain.view(torch.uint16).numpy(), list(plain.shape), openvino.Type.bf16)
    return openvino.Tensor(plain.numpy(), shared_memory=True)


class Graph:
    """An OpenVINO graph being written, and the tensors whose memory its constants share."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.constants: list[Tensor] = []

    def input(self, dtype: torch.dtype, *shape: int) -> GraphTensor:
        """Return one more input; -1 is a size that is only known when the graph runs."""
        self.inputs.append(op.parameter(openvino.PartialShape(list(shape)), TYPES[dtype]))
        return GraphTensor(self, self.inputs[-1])

    def constant(self, value: Tensor | float, dtype: torch.dtype) -> GraphTensor:
        """Return a tensor or a number as it is in a dtype; a tensor of that dtype keeps its memory."""
        tensor = torch.as_tensor(value).detach().to(dtype).contiguous()
        tensor = tensor if tensor.ndim else tensor[None]
        self.constants.append(tensor)
        return GraphTensor(self, openvino.op.Constant(shared(tensor), shared_memory=True))

    def finish(self, result: GraphTensor) -> openvino.Model:
        """Return the model that computes `result` from the inputs in their order."""
        return openvino.Model([result.output], self.inputs)


class GraphTensor:
    """A tensor of a graph: it has a dtype, a shape, and the methods that the nets here call."""

    def __init__(self, graph: Graph, node: Any, *, product: tuple[GraphTensor, Tensor, Tensor] | None = None) -> None:
        self.graph, self.output = graph, node.output(0)
        self.product = product
        """Where it is a linear layer's result: what went in, the weight and the bias."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> GraphTensor:
        if function not in _FUNCTIONS:
            raise TypeError(f"{function} cannot be written as an OpenVINO graph yet")
        return _FUNCTIONS[function](*args, **(kwargs or {}))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that torch would compute it in."""
        return _DTYPES[self.output.get_element_type().get_type_name()]

    @property
    def shape(self) -> torch.Size:
        """The sizes; -1 where only a run knows."""
        return torch.Size(size.get_length() if size.is_static else -1 for size in self.output.get_partial_shape())

    @property
    def device(self) -> torch.device:
        """Where torch would have it."""
        return torch.device("cpu")

    def is_contiguous(self) -> bool:
        """Say yes: it has no memory."""
        return True

    def __len__(self) -> int:
        return self.shape[0]

    def to(self, dtype: torch.dtype) -> GraphTensor:
        """Return it in another dtype."""
        return self if dtype == self.dtype else self.then(op.convert, TYPES[dtype])

    def float(self) -> GraphTensor:
        """Return it in float32."""
        return self.to(torch.float32)

    def view(self, *shape: Any) -> GraphTensor:
        """Return it in another shape, of which one size may be -1."""
        sizes = shape if isinstance(shape[0], int) else shape[0]
        return self.then(op.reshape, whole(*sizes), False)

    def flatten(self, start: int = 0) -> GraphTensor:
        """Return it with all dimensions from `start` as one."""
        return self.view(*self.shape[:start], -1)

    def unflatten(self, dimension: int, sizes: Sequence[int]) -> GraphTensor:
        """Return it with one dimension as several."""
        return self.view(*self.shape[:dimension], *sizes, *self.shape[dimension + 1 :])

    def transpose(self, first: int, second: int) -> GraphTensor:
        """Return it with two dimensions swapped."""
        order = list(range(len(self.shape)))
        order[first], order[second] = second, first
        return self.then(op.transpose, whole(*order))

    def __getitem__(self, index: tuple[slice | None, ...]) -> GraphTensor:
        if any(part is not None and part != slice(None) for part in index):
            raise TypeError(f"the index {index} cannot be written as an OpenVINO graph yet")
        return self.then(op.unsqueeze, whole(*(place for place, part in enumerate(index) if part is None)))

    def __add__(self, other: Number) -> GraphTensor:
        return self.then(op.add, self.beside(other))

    def __sub__(self, other: Number) -> GraphTensor:
        return self.then(op.subtract, self.beside(other))

    def __mul__(self, other: Number) -> GraphTensor:
        return self.then(op.multiply, self.beside(other))

    add_ = __add__

    def cos(self) -> GraphTensor:
        """Return the cosines."""
        return self.then(op.cos)

    def sin(self) -> GraphTensor:
        """Return the sines."""
        return self.then(op.sin)

    def then(self, operation: Callable[..., Any], *arguments: Any) -> GraphTensor:
        """Return what an operation of OpenVINO's makes of it."""
        return GraphTensor(self.graph, operation(self.output, *arguments))

    def beside(self, value: Number) -> Any:
        """Return a value as an operand: a number or a weight becomes a constant of the same dtype."""
        given = value if isinstance(value, GraphTensor) else self.graph.constant(value, self.dtype)
        return given.output


def whole(*numbers: int) -> Any:
    """Return a constant of whole numbers, such as shapes and dimensions."""
    return op.constant(np.array(numbers, dtype=np.int64))


def linear(x: GraphTensor, weight: Tensor, bias: Tensor | None = None) -> GraphTensor:
    """[..., I] -> [..., O] by weight [O, I] and bias [O]."""
    product = x.then(op.matmul, x.beside(weight), False, True)
    if bias is None:
        return product
    return GraphTensor(x.graph, op.add(product.output, x.beside(bias)), product=(x, weight, bias))


def silu(x: GraphTensor) -> GraphTensor:
    """Return x times its sigmoid."""
    return x * x.then(op.sigmoid)


def group_norm(x: GraphTensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> GraphTensor:
    """Normalise [B, C, h, w] over groups of channels and all pixels, in float32 inside as torch does.

    By sums over pixels: OpenVINO's own operation wants channels first, and what stands around has them last.
    """
    batch, channels = x.shape[:2]
    wide, pixels = x.float(), whole(2, 3)

    def mean_of_group(values: GraphTensor) -> GraphTensor:
        by_channel = values.then(op.reduce_mean, pixels, True).view(batch, groups, channels // groups, 1)
        return by_channel.then(op.reduce_mean, whole(2), True)  # [B, G, 1, 1]

    def by_channel(values: GraphTensor) -> GraphTensor:
        return values.then(op.broadcast, whole(batch, groups, channels // groups, 1)).view(batch, channels, 1, 1)

    centred = wide - by_channel(mean_of_group(wide))
    variance = mean_of_group(centred * centred) + eps
    scale = by_channel(variance.then(op.power, variance.beside(-0.5))) * weight[:, None, None]
    return (centred * scale + bias[:, None, None]).to(x.dtype)


def _convolution(
    x: GraphTensor,
    weight: Tensor,
    bias: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> GraphTensor:
    edge = list(padding)
    assert groups == 1  # no net here has others
    return x.then(op.convolution, x.beside(weight), list(stride), edge, edge, list(dilation)) + bias[:, None, None]


def _layer_norm(x: GraphTensor, shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float) -> GraphTensor:
    assert len(shape) == 1
    return x.then(op.mvn, whole(-1), True, eps, "inside_sqrt") * weight + bias


def _concatenation(parts: Sequence[GraphTensor], dim: int) -> GraphTensor:
    return GraphTensor(parts[0].graph, op.concat([part.output for part in parts], dim))


def _enlargement(x: GraphTensor, size: tuple[int, int], **_: object) -> GraphTensor:
    nothing = [0, 0]
    settings = (nothing, nothing, "asymmetric", "floor", False, -0.75, whole(2, 3))
    return x.then(op.interpolate, whole(*size), "nearest", "sizes", *settings)


_FUNCTIONS = cast(
    "dict[Any, Callable[..., GraphTensor]]",
    {
        F.linear: linear,
        F.conv2d: _convolution,
        F.silu: lambda x, inplace: silu(x),
        F.group_norm: group_norm,
        F.layer_norm: _layer_norm,
        F.interpolate: _enlargement,
        torch.cat: _concatenation,
    },
)
