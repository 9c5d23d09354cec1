"""The exponential moving average of trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class Average:
    """Follows the parameters of a module: average = decay * average + (1 - decay) * now.

    The decay starts low and rises to its setting, (1 + n) / (10 + n) after n updates, so that the random start is
    soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay, self._updates = module, decay, 0
        self._names = [name for name, _ in module.named_parameters()]
        self._live: Sequence[Tensor] = list(module.parameters())
        self._mean: Sequence[Tensor] = [p.detach().clone() for p in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        torch._foreach_lerp_(list(self._mean), list(self._live), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the averaged weights into the module for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for live, mean in zip(self._live, self._mean, strict=True):
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)

    @torch.no_grad()
    def adopt(self) -> None:
        """Make the averaged weights the module's own."""
        torch._foreach_copy_(list(self._live), list(self._mean))

    def state(self) -> dict[str, Tensor]:
        """Return the averages by parameter name, and the number of updates."""
        return dict(zip(self._names, self._mean, strict=True)) | {"updates": torch.tensor(self._updates)}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        for name, mean in zip(self._names, self._mean, strict=True):
            mean.copy_(state[name])
        self._updates = int(state["updates"])
