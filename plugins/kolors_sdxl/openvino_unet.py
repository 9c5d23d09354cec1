"""The U-Net compiled by OpenVINO for latents of one shape."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import openvino
import torch
from torch import Tensor

from kolors_kernel.errors import RunError
from kolors_sdxl.openvino_graph import Graph, GraphTensor, shared

if TYPE_CHECKING:
    from kolors_sdxl.blocks import Keys
    from kolors_sdxl.unet import UNet

_PRODUCTS = {"Convolution", "FullyConnected", "MatMul", "Subgraph"}
"""What OpenVINO calls the parts of a compiled net that compute; attention is in subgraphs."""


class CompiledUNet:
    """A U-Net that takes what `UNet.context` gives as inputs, for any number of text rows.

    Its weights are laid out anew by OpenVINO; the plain ones stay in memory beside them, because it refers to them.
    """

    def __init__(self, unet: UNet, latents: Sequence[int], keys: Sequence[Keys], pooled: int, *, threads: int) -> None:
        """`latents` is [B, C, h, w], `unet` is made with the operations for graphs, `keys` says what those of a text
        look like. Raises RunError when a float32 net would not be computed in float32.
        """
        self.dtype = next(unet.parameters()).dtype
        start = time.perf_counter()
        graph = Graph()
        result = unet(*_inputs(graph, self.dtype, latents, keys, pooled))
        self._constants = graph.constants
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Allows no rounding beyond the graph's: what is bfloat16 in it stays so, and nothing else becomes it.
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
        }
        compiled = openvino.Core().compile_model(graph.finish(result), "CPU", settings)
        self.seconds, self.threads = time.perf_counter() - start, compiled.get_property("INFERENCE_NUM_THREADS")
        self.precisions = _precisions(compiled)
        if self.dtype == torch.float32 and set(self.precisions) != {"f32"}:
            found = " and ".join(self.precisions)
            raise RunError(f"OpenVINO would compute a float32 net in {found} on this machine: use 'sdxl_unet'")
        self._request = compiled.create_infer_request()
        self._shape = compiled.output(0).shape
        self._keys: Sequence[Keys] = ()

    def __call__(
        self, noisy: Tensor, timesteps: Tensor, keys: Sequence[Keys], pooled: Tensor, size: Tensor, mask: Tensor
    ) -> Tensor:
        """Do what `UNet.forward` does, all in the net's dtype but timesteps, size and mask, which are float32.

        Keys are handed over without a copy, and only where they are another list than the last.
        """
        given = [tensor.contiguous() for tensor in (noisy, timesteps, pooled, size, mask)]
        out = torch.empty(tuple(self._shape), dtype=self.dtype)
        for place, tensor in enumerate(given):
            self._request.set_input_tensor(place, shared(tensor))
        if keys is not self._keys:
            self._rows = [part.transpose(1, 2).contiguous() for pair in keys for part in pair]  # as they lie in memory
            for place, part in enumerate(self._rows, start=len(given)):
                self._request.set_input_tensor(place, shared(part))
            self._keys = keys
        self._request.set_output_tensor(0, shared(out))
        self._request.infer()
        return out


def _inputs(
    graph: Graph, dtype: torch.dtype, latents: Sequence[int], keys: Sequence[Keys], pooled: int
) -> tuple[GraphTensor | list[tuple[GraphTensor, GraphTensor]], ...]:
    """Declare the inputs, and return them as `UNet.forward` takes them."""
    batch = latents[0]
    noisy, timesteps = graph.input(dtype, *latents), graph.input(torch.float32, batch)
    text, size = graph.input(dtype, batch, pooled), graph.input(torch.float32, batch, 6)
    mask = graph.input(torch.float32, batch, 1, 1, -1)

    def rows(like: Tensor) -> GraphTensor:
        _, heads, _, width = like.shape
        return graph.input(dtype, batch, -1, heads, width).transpose(1, 2)

    return noisy, timesteps, [(rows(k), rows(v)) for k, v in keys], text, size, mask


def _precisions(compiled: openvino.CompiledModel) -> Counter[str]:
    """Count the parts that compute by the precision they do it in."""
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return Counter(fact["runtimePrecision"].astype(str) for fact in facts if fact["layerType"].astype(str) in _PRODUCTS)
