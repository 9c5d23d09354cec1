"""A text encoder for Kolors that needs no weights: each character becomes the vector its code draws."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from kolors_kernel import BuildContext, ComponentConfig, hookimpl
from kolors_kernel.kinds import TextEncoderConfig
from kolors_kernel.values import Conditioning, ConditioningSpec

if TYPE_CHECKING:
    from torch import Tensor


class Hello(TextEncoderConfig):
    """Gives each character a random vector of its own; what a text means is left to the backbone to learn."""

    type: Literal["hello"] = "hello"
    width: PositiveInt = 64
    """Length of each vector."""

    def spec(self) -> ConditioningSpec:
        """Return 64 characters and their mean."""
        return ConditioningSpec(tokens=64, width=self.width, pooled=self.width)

    def build(self, ctx: BuildContext) -> HelloEncoder:
        """Draw the vectors, the same ones every time."""
        import torch  # only here: listing and checking recipes needs no torch

        table = torch.randn(4096, self.width, generator=torch.Generator().manual_seed(0))
        return HelloEncoder(table.to(ctx.device, getattr(torch, ctx.dtype)))


@dataclass(frozen=True)
class HelloEncoder:
    """Looks characters up in a table [4096, width]."""

    table: Tensor

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return tokens [B, 64, width], short texts filled up with spaces, and their mean [B, width]."""
        for prompt in prompts:
            if len(prompt) > 64:
                warnings.warn(f"read 64 of {len(prompt)} characters: {prompt[:20]}...", stacklevel=2)
        codes = [ord(character) % 4096 for prompt in prompts for character in prompt[:64].ljust(64)]
        tokens = self.table[codes].view(len(prompts), 64, self.table.shape[1])
        return Conditioning(tokens, tokens.mean(dim=1))


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return what this plugin adds."""
    return [Hello]
