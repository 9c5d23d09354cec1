"""Classifier-free guidance as a function from denoiser to denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from kolors_kernel.protocols import Denoise


class ClassifierFreeGuidance:
    """Moves from the negative prompt's prediction past the prompt's.

    `scale` 1 is the prompt's prediction itself and asks the denoiser for no negative rows. `rescale` in [0, 1] blends
    in the result brought to the standard deviation of the prompt's prediction, per sample (Lin et al. 2023).
    """

    def __init__(self, *, scale: float, rescale: float) -> None:
        if scale < 1:
            raise ValueError(f"scale {scale:g} must not be below 1, which is no guidance")
        self.scale = scale
        self.rescale = rescale
        self.uses_negative = scale > 1

    def __call__(self, denoise: Denoise) -> Denoise:
        """Return a denoiser of B rows that steers `denoise`.

        It asks once, with 2B rows, the negative prompt's first; at scale 1 with B rows, the prompt's.
        """
        if not self.uses_negative:
            return denoise

        def guided(x: Tensor, timesteps: Tensor) -> Tensor:
            negative, positive = denoise(torch.cat([x, x]), torch.cat([timesteps, timesteps])).chunk(2)
            steered = negative + self.scale * (positive - negative)
            return _rescaled(steered, positive, self.rescale) if self.rescale > 0 else steered

        return guided


def _rescaled(steered: Tensor, positive: Tensor, share: float) -> Tensor:
    """Blend `steered` [B, C, h, w] with itself at the spread of `positive`, sample by sample."""
    axes = tuple(range(1, steered.dim()))
    ratio = positive.std(axes, keepdim=True) / steered.std(axes, keepdim=True)
    return steered * (share * ratio + (1 - share))
