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


def step_clipped(optimizer: torch.optim.AdamW, clip: float) -> Tensor:
    """Step along the gradient, shortened to a norm of `clip` where it is longer, drop it, and return its norm."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    # What torch's own scaler hands to a fused step: it divides by this on the way, so that no pass is spent on it.
    optimizer.grad_scale = (norm / clip).clamp(min=1)  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state as tensors by "index.name"."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` returned."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        # The fused step goes through memory: the moments must lie there as the weights do.
        laid = torch.empty_like(parameters[int(index)]).copy_(value) if value.ndim else value
        state.setdefault(int(index), {})[name] = laid
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
