"""A ChatGLM3 that has one layer in memory at a time and reads each from its file as it comes to it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kolors_chatglm3.model import ChatGLM3Model
from kolors_kernel.errors import WeightsError
from kolors_weights.state import State

_TABLE = "embedding.word_embeddings.weight"
_AT_ONCE = 2**20


def stream_from(module: ChatGLM3Model, state: State, *, device: str, dtype: torch.dtype) -> None:
    """Have a model on the meta device read its weights from `state`, which fits it, whenever it runs."""
    layer, count = module.encoder.layers[0], len(module.encoder.layers)
    layer.to_empty(device=device).to(dtype)
    module.set_submodule("embedding", StreamedEmbedding(state, device=device, dtype=dtype))
    module.set_submodule("encoder.layers", StreamedLayers(layer, count, state))


class StreamedEmbedding(nn.Module):
    """The table of word embeddings, of which only the rows are read that are asked for."""

    def __init__(self, state: State, *, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.state, self.dtype = state, dtype
        self.device = torch.device(device)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [R] -> [R, D]."""
        rows = self.state[_TABLE][ids.cpu()].to(self.device, self.dtype)
        self.state.release(_TABLE)
        _require_finite(_TABLE, rows, self.state)
        return rows


class StreamedLayers(nn.Module):
    """The layers, one after the other in the memory of one. Raises WeightsError where a weight is no number."""

    def __init__(self, layer: nn.Module, count: int, state: State) -> None:
        super().__init__()
        self.layer, self.count, self.state = layer, count, state

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[nn.Module]:
        for index in range(self.count):
            for key, tensor in self._weights(index):
                self._read(key, tensor)
            if index + 1 < self.count:
                for key, _ in self._weights(index + 1):
                    self.state.expect(key)
            yield self.layer

    def _weights(self, index: int) -> list[tuple[str, Tensor]]:
        return [(f"encoder.layers.{index}.{name}", tensor) for name, tensor in self.layer.state_dict().items()]

    @torch.no_grad()
    def _read(self, key: str, into: Tensor) -> None:
        _copy(self.state[key], into)
        self.state.release(key)
        _require_finite(key, into, self.state)


def _copy(stored: Tensor, into: Tensor) -> None:
    """Copy a tensor: float16 goes to bfloat16 by way of float32 in the cache, which takes a third of the time."""
    by_way = stored.dtype == torch.float16 and into.dtype == torch.bfloat16
    step = _AT_ONCE // stored[0].numel() + 1
    for start in range(0, len(stored), step):
        rows = stored[start : start + step]
        into[start : start + step].copy_(rows.float() if by_way else rows)


def _require_finite(key: str, tensor: Tensor, state: State) -> None:
    if tensor.is_floating_point() and not torch.stack(tensor.aminmax()).isfinite().all():
        raise WeightsError(f"{state.file(key)}: {key} is not finite in {tensor.dtype}: the file is damaged")
