"""The curves of alpha_bar, one function each (2.2.2).

alpha_bar, a float64 value per timestep, is what the paper calls alpha_t: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 -
alpha_bar_t) eps. All arithmetic is in float64, where a thousand factors cost nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def scaled_linear(steps: int, beta_start: float, beta_end: float, *, line_steps: int) -> Tensor:
    """Return alpha_bar of betas whose square roots lie on a line, [steps] float64 (2.2.2).

    The line reaches `beta_end` at its `line_steps`-th point; more `steps` than that follow the same line on, so that
    two lengths share every value they both have, bit for bit. Raises ValueError when a beta is not in (0, 1).
    """
    first, last = math.sqrt(beta_start), math.sqrt(beta_end)
    # Not torch.linspace: it works from both ends, so that its values depend on how many there are.
    roots = first + torch.arange(steps, dtype=torch.float64) * ((last - first) / (line_steps - 1))
    return _from_betas(roots.square())


def linear(steps: int, beta_start: float, beta_end: float) -> Tensor:
    """Return alpha_bar of evenly spaced betas, [steps] float64 (Ho et al. 2020)."""
    return _from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))


def cosine(steps: int, *, offset: float, max_beta: float) -> Tensor:
    """Return alpha_bar of a squared cosine, [steps] float64 (Nichol and Dhariwal 2021)."""
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = ((time + offset) / (1 + offset) * (math.pi / 2)).cos().square()
    return _from_betas((1 - curve[1:] / curve[:-1]).clamp(max=max_beta))


def sigmoid(steps: int, *, start: float, end: float, temperature: float) -> Tensor:
    """Return alpha_bar of a logistic curve from `start` to `end`, [steps] float64; the last is 0.

    From Jabri et al. 2022 (RIN) and Chen 2023, who keep the last value above 0 by clipping it at 1e-9.
    """
    time = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    ends = torch.tensor([start, end], dtype=torch.float64).div(temperature).sigmoid()
    curve = (time * (end - start) + start).div(temperature).sigmoid()
    alpha_bar = (ends[1] - curve) / (ends[1] - ends[0])
    alpha_bar[-1] = 0.0
    return alpha_bar


def rectified_flow(steps: int, *, shift: float) -> Tensor:
    """Return alpha_bar with the ratios of a straight path from picture to noise, [steps] float64.

    The path is (1 - u) x_0 + u eps with u evenly spaced up to 1 and then moved by `shift` (Esser et al. 2024).
    """
    even = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    signal, noise = 1 - even, shift * even  # the moved u is noise / (signal + noise)
    return signal.square() / (signal.square() + noise.square())


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Return alpha_bar [T] with its root shifted to end at 0 and scaled to begin where it did."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()


def shift_log_snr(alpha_bar: Tensor, factor: float) -> Tensor:
    """Return alpha_bar [T] with every signal-to-noise ratio multiplied by factor²."""
    signal = alpha_bar * factor**2
    return signal / (signal + (1 - alpha_bar))


def _from_betas(betas: Tensor) -> Tensor:
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"betas must lie in (0, 1), but run from {betas.min().item():g} to {betas.max().item():g}")
    return (1 - betas).cumprod(0)
