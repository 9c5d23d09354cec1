"""AdamW, its learning rate, and its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kolors_recipes.training_config import Optimizer

FLOOR = 0.01
"""Where cosine decay ends, as a share of the learning rate."""


def optimizer_for(modules: Sequence[nn.Module], settings: Optimizer) -> torch.optim.AdamW:
    """Return AdamW over all parameters of the modules, in one fused pass."""
    parameters = [p for module in modules for p in module.parameters()]
    decay = settings.weight_decay
    return torch.optim.AdamW(parameters, settings.learning_rate, settings.betas, weight_decay=decay, fused=True)


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """Return the rate of step `step` (from 0) of `steps`."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.decay == "constant":
        return settings.learning_rate
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    return settings.learning_rate * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state as tensors by "index.name"."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` returned."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
