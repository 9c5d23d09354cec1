"""The plainest objects that satisfy a protocol, for testing what is built on top of them."""

from __future__ import annotations

import torch
from torch import Tensor


class TableSchedule:
    """A noise schedule that is nothing but its table, with the square roots interpolated linearly in between."""

    def __init__(self, alpha_bar: Tensor) -> None:
        self.alpha_bar = alpha_bar.double()

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signal and noise scale at each timestep [B], float64; -1 is (1, 0)."""
        signals = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar.sqrt()])
        place = (timesteps.double().cpu() + 1).clamp(0, len(signals) - 1)
        below = place.floor().long().clamp(max=len(signals) - 2)
        signal = torch.lerp(signals[below], signals[below + 1], place - below)
        return signal, (1 - signal**2).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return signal * latents + noise scale * noise, in the dtype of the latents."""
        signal, scale = (c.to(latents.dtype).view(-1, 1, 1, 1) for c in self.coefficients(timesteps))
        return signal * latents + scale * noise
