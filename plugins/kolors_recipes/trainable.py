"""What a part must be able to do to be trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kolors_kernel.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn


class SupportsTraining(Protocol):
    """A part whose weights a training may change."""

    module: nn.Module

    def save(self, folder: Path) -> None:
        """Write config.json and safetensors into `folder`, made if absent: what its own config's `path` loads."""


class SupportsPosterior(SupportsTraining, Protocol):
    """An autoencoder that can be trained as a variational one."""

    scaling_factor: float
    """What latents are multiplied by; a training sets it at its end, so that they have unit variance."""

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> mean and log variance of the unscaled latents, [B, C, h, w] each."""

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Decode unscaled latents [B, C, h, w] -> [B, 3, H, W]."""


def require_trainable(part: object, called: str, *, able: Sequence[str] = ("module", "save")) -> None:
    """Raise RecipeError, calling the part so, unless it can do what training asks of it: weights, and to write them."""
    lacking = [ability for ability in able if not hasattr(part, ability)]
    if lacking:
        raise RecipeError(f"{called} cannot be trained: it has no {' and no '.join(lacking)}")
