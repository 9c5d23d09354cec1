"""Models of ChatGLM3: with random weights, with those of files, or reading those of files as they are needed."""

from __future__ import annotations

from pathlib import Path

import torch

from kolors_chatglm3.architecture import Architecture
from kolors_chatglm3.model import ChatGLM3Model, Ops
from kolors_chatglm3.streaming import stream_from
from kolors_kernel.errors import WeightsError
from kolors_weights.modules import check_fit, fit, without_weights
from kolors_weights.places import Place
from kolors_weights.quantizing import Bits, compute_by, quantize_linears, take_shapes
from kolors_weights.reading import find_weights, open_state
from kolors_weights.state import State

_UNUSED = ("encoder.final_layernorm.", "output_layer.", "rotary_pos_emb.")
GROUP = 64
"""Columns that share a scale in 4 bits."""


def random_model(
    architecture: Architecture, ops: Ops, *, device: str, dtype: str, quantize: Bits | None = None
) -> ChatGLM3Model:
    """Return a model to train from scratch: the same weights for the same architecture, always."""
    with without_weights():
        module = ChatGLM3Model(architecture, ops)
    module.to_empty(device="cpu")
    module.initialise(torch.Generator().manual_seed(0))
    module.to(device, getattr(torch, dtype))
    if quantize is not None:
        _quantize(module, quantize, ops)
        module.fix(_quantized(quantize))
    return module


def load_model(
    place: Place, architecture: Architecture, ops: Ops, *, device: str, dtype: str, quantize: Bits | None = None
) -> ChatGLM3Model:
    """Return the model of a folder or file: safetensors or pickles of plain tensors, in one file or in shards.

    Keys may carry the prefix `transformer.`; the head, the final norm and the rotation's buffer are not read. What is
    quantised in the file stays so; `quantize` does it layer by layer, so that no more than one is in memory as it was.
    Raises WeightsError when a file is damaged or the keys do not fit.
    """
    module, state, file, stored = _open(place, architecture, ops)
    if quantize and stored:
        raise WeightsError(f"{file} is quantised to {stored} bits as it is: leave the setting 'quantize' out")
    if not quantize and not stored:
        fit(module, state, where=file, dtype=getattr(torch, dtype), device=device)
        return module
    for name in ("embedding", *(f"encoder.layers.{index}" for index in range(architecture.num_layers))):
        part = module.get_submodule(name)
        fit(part, _below(state, f"{name}."), where=file, device=device)
        if quantize:
            _quantize(part, quantize, ops)
        part.to(getattr(torch, dtype))  # but not the scales
    module.fix(_quantized(quantize or stored))
    return module


def streamed_model(place: Place, architecture: Architecture, ops: Ops, *, device: str, dtype: str) -> ChatGLM3Model:
    """Return the model of a folder or file that holds one layer at a time, and reads each as it comes to it.

    It computes what that of `load_model` does. Raises WeightsError when the keys do not fit.
    """
    module, state, file, _ = _open(place, architecture, ops)
    stream_from(module, state, device=device, dtype=getattr(torch, dtype))
    module.fix(f"its weights are streamed from {file}")
    return module


def _open(place: Place, architecture: Architecture, ops: Ops) -> tuple[ChatGLM3Model, State, Path, Bits | None]:
    """Return a model without weights, the mapped weights that fit it, their file, and how many bits they have."""
    file = find_weights(place, "model", "pytorch_model")
    state = open_state(file).renamed(_used)
    with without_weights():
        module = ChatGLM3Model(architecture, ops)
    stored = take_shapes(module, state)
    compute_by(module, ops.quantized_linear)
    check_fit(module, state, where=file)
    return module, state, file, stored


def _used(key: str) -> str | None:
    key = key.removeprefix("transformer.")
    return None if key.startswith(_UNUSED) else key


def _below(state: State, prefix: str) -> State:
    return state.renamed(lambda key: key.removeprefix(prefix) if key.startswith(prefix) else None)


def _quantize(part: torch.nn.Module, bits: Bits, ops: Ops) -> None:
    quantize_linears(part, bits, group=GROUP if bits == 4 else None)
    compute_by(part, ops.quantized_linear)


def _quantized(bits: Bits | None) -> str:
    return f"its weights are quantised to {bits} bits"
