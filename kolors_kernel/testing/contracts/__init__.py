"""One contract per kind: what `kolors_kernel.protocols` promises in words, as tests to subclass.

A subclass sets `config`, most often to its component's `tiny()`. Where a contract needs more than that (prompt
cases, a backbone to attach to) it has a method or attribute with a default, to be overridden.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kolors_kernel.testing.contracts.component import ComponentContract
from kolors_kernel.testing.contracts.data import (
    CaptionerContract,
    CaptionMixContract,
    DataSinkContract,
    DataSourceContract,
    SampleFilterContract,
)
from kolors_kernel.testing.contracts.model import (
    AdapterContract,
    AutoencoderContract,
    BackboneContract,
    TextEncoderContract,
)
from kolors_kernel.testing.contracts.ops import (
    AddLayerNormContract,
    AttentionContract,
    GEGLUContract,
    GroupNormSiLUContract,
    QuantizedLinearContract,
    RMSNormContract,
    RotaryContract,
)
from kolors_kernel.testing.contracts.runs import (
    MetricContract,
    ObserverContract,
    PromptSetContract,
    RecipeContract,
    WorkersContract,
)
from kolors_kernel.testing.contracts.sampling import GuidanceContract, NoiseScheduleContract, SolverContract

CONTRACTS: Mapping[str, type[ComponentContract[Any]]] = MappingProxyType(
    {
        "text_encoder": TextEncoderContract,
        "autoencoder": AutoencoderContract,
        "backbone": BackboneContract,
        "noise_schedule": NoiseScheduleContract,
        "solver": SolverContract,
        "guidance": GuidanceContract,
        "adapter": AdapterContract,
        "captioner": CaptionerContract,
        "caption_mix": CaptionMixContract,
        "data_source": DataSourceContract,
        "data_sink": DataSinkContract,
        "sample_filter": SampleFilterContract,
        "prompt_set": PromptSetContract,
        "metric": MetricContract,
        "attention": AttentionContract,
        "group_norm_silu": GroupNormSiLUContract,
        "geglu": GEGLUContract,
        "add_layer_norm": AddLayerNormContract,
        "rms_norm": RMSNormContract,
        "rotary": RotaryContract,
        "quantized_linear": QuantizedLinearContract,
        "workers": WorkersContract,
        "observer": ObserverContract,
        "recipe": RecipeContract,
    }
)
"""The contract of each kind; a kind that a plugin adds is held to `ComponentContract` until it brings its own."""

__all__ = [
    "CONTRACTS",
    "AdapterContract",
    "AddLayerNormContract",
    "AttentionContract",
    "AutoencoderContract",
    "BackboneContract",
    "CaptionMixContract",
    "CaptionerContract",
    "ComponentContract",
    "DataSinkContract",
    "DataSourceContract",
    "GEGLUContract",
    "GroupNormSiLUContract",
    "GuidanceContract",
    "MetricContract",
    "NoiseScheduleContract",
    "ObserverContract",
    "PromptSetContract",
    "QuantizedLinearContract",
    "RMSNormContract",
    "RecipeContract",
    "RotaryContract",
    "SampleFilterContract",
    "SolverContract",
    "TextEncoderContract",
    "WorkersContract",
]
