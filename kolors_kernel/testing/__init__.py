"""Tests for authors of components: a contract class per kind to subclass, and Hypothesis strategies.

    from kolors_kernel.testing import TextEncoderContract

    class TestHello(TextEncoderContract):
        config = Hello.tiny()

Not part of the core: this package may import torch, pytest and hypothesis.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("kolors_kernel.testing.contracts")  # a contract that fails shows its values

from kolors_kernel.testing.contracts import (  # noqa: E402
    CONTRACTS,
    AdapterContract,
    AddLayerNormContract,
    AttentionContract,
    AutoencoderContract,
    BackboneContract,
    CaptionerContract,
    CaptionMixContract,
    ComponentContract,
    DataSinkContract,
    DataSourceContract,
    GEGLUContract,
    GroupNormSiLUContract,
    GuidanceContract,
    MetricContract,
    NoiseScheduleContract,
    ObserverContract,
    PromptSetContract,
    QuantizedLinearContract,
    RecipeContract,
    RMSNormContract,
    RotaryContract,
    SampleFilterContract,
    SolverContract,
    TextEncoderContract,
    WorkersContract,
)

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
