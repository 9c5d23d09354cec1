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


def optimizer_for(parameters: Sequence[nn.Parameter], settings: Optimizer) -> torch.optim.AdamW:
    """Return AdamW over views of the parameters, to be stepped by `step_clipped`, in one fused pass.

    The pass goes straight through memory, and torch first copies gradients of convolutions whose channels lie last;
    of a view with the channels last in its shape it does not.
    """
    views = [_channels_last(parameter.detach()) for parameter in parameters]
    decay = settings.weight_decay
    return torch.optim.AdamW(views, settings.learning_rate, settings.betas, weight_decay=decay, fused=True)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def _laid_as(view: Tensor, tensor: Tensor) -> Tensor:
    """Return the tensor as it is, or a copy where it does not lie in memory as the view does."""
    return tensor if tensor.stride() == view.stride() else torch.empty_like(view).copy_(tensor)


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """Return the rate of step `step` (from 0) of `steps`."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.decay == "constant":
        return settings.learning_rate
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    return settings.learning_rate * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


def step_clipped(optimizer: torch.optim.AdamW, parameters: Sequence[nn.Parameter], clip: float) -> Tensor:
    """Step along the gradient, shortened to a norm of `clip` where it is longer, drop it, and return its norm.

    `parameters` are those that the optimizer was made for.
    """
    for view, parameter in zip(optimizer.param_groups[0]["params"], parameters, strict=True):
        gradient, parameter.grad = parameter.grad, None
        view.grad = None if gradient is None else _laid_as(view, _channels_last(gradient))
    gradients = [view.grad for view in optimizer.param_groups[0]["params"] if view.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    # What torch's own scaler hands to a fused step: it divides by this on the way, so that no pass is spent on it.
    optimizer.grad_scale = (norm / clip).clamp(min=1)  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state as tensors by "index.name", shaped as the parameters are."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value.permute(0, 3, 1, 2) if value.ndim == 4 else value
        for index, values in state.items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` returned."""
    views = optimizer.param_groups[0]["params"]
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        moment = _laid_as(views[int(index)], _channels_last(value)) if value.ndim else value  # or the number of steps
        state.setdefault(int(index), {})[name] = moment
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
