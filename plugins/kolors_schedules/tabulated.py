"""A noise schedule that is a table of alpha_bar (2.2.2)."""

from __future__ import annotations

import torch
from torch import Tensor


class TabulatedSchedule:
    """A schedule given by alpha_bar [T], looked up on `device`.

    Between two timesteps sigma = noise / signal is interpolated linearly, as Euler solvers expect; the clean picture,
    sigma 0, stands at -1. Where sigma is infinite, at the end of a schedule that ends in pure noise, it is 1 / sigma
    that is interpolated on the last stretch. Raises ValueError for a table that is not strictly decreasing in [0, 1).
    """

    alpha_bar: Tensor
    """[T] float64 on the CPU, strictly decreasing, in [0, 1); only its last value may be 0."""

    def __init__(self, alpha_bar: Tensor, *, device: str = "cpu") -> None:
        if alpha_bar.dim() != 1 or len(alpha_bar) < 2:
            raise ValueError(f"a schedule needs a row of two values or more, not a table of shape {[*alpha_bar.shape]}")
        self.alpha_bar = alpha_bar.detach().to("cpu", torch.float64)
        if not (self.alpha_bar[0] < 1 and self.alpha_bar[-1] >= 0 and (self.alpha_bar.diff() < 0).all()):
            raise ValueError(
                "alpha_bar must be strictly decreasing in [0, 1); "
                f"this one of {len(alpha_bar)} values goes from {alpha_bar[0].item():g} to {alpha_bar[-1].item():g}"
            )
        with_clean = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar])
        self._scales = torch.stack([with_clean.sqrt(), (1 - with_clean).sqrt()]).to(device)  # [2, T + 1]

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signal and noise scale at each timestep [B], float64, on its device.

        At whole timesteps they are sqrt(alpha_bar) and sqrt(1 - alpha_bar) exactly. Raises ValueError outside of
        [-1, T - 1]; asked only of timesteps on the CPU, for on a GPU the question would stop the stream.
        """
        position = timesteps.to(torch.float64) + 1
        last = len(self.alpha_bar)
        if position.device.type == "cpu" and not ((position >= 0) & (position <= last)).all():
            raise ValueError(
                f"timesteps must lie in [-1, {last - 1}], but go from {timesteps.min()} to {timesteps.max()}"
            )
        scales = self._scales.to(position.device)
        below = position.floor().long()
        part = position - below
        signal, noise = scales[:, below]
        next_signal, next_noise = scales[:, (below + 1).clamp(max=last)]
        # (1 - part) * noise / signal + part * next_noise / next_signal, over a common denominator
        ends_in_noise = next_signal == 0
        along_signal = torch.where(ends_in_noise, (1 - part) * signal, signal * next_signal)
        along_noise = torch.where(ends_in_noise, noise, (1 - part) * noise * next_signal + part * next_noise * signal)
        length = torch.hypot(along_signal, along_noise)
        whole = part == 0
        return torch.where(whole, signal, along_signal / length), torch.where(whole, noise, along_noise / length)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Diffuse latents [B, C, h, w] with unit noise to timesteps [B], in their dtype (2.2.2)."""
        shape = [-1] + [1] * (latents.dim() - 1)
        signal_scale, noise_scale = (
            scale.to(latents.device, latents.dtype).view(shape) for scale in self.coefficients(timesteps)
        )
        return signal_scale * latents + noise_scale * noise.to(latents.dtype)
