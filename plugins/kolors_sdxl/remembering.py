"""Keeping what the U-Net attends to of a text from one step to the next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from kolors_sdxl.blocks import Keys
    from kolors_sdxl.unet import UNet

Stamps: TypeAlias = list[tuple[StorageWeakRef, int]]


class TextKeys:
    """The keys of the last text, for as long as neither it nor the weights that make them have changed."""

    def __init__(self, unet: UNet) -> None:
        self._unet = unet
        self._kept = WeakTensorKeyDictionary()  # a text's tensor -> the state they were made in, and its keys

    def __reduce__(self) -> tuple[type[TextKeys], tuple[UNet]]:
        """Copy and pickle as one that has kept nothing yet: weak references belong to one process and one object."""
        return TextKeys, (self._unet,)

    def __call__(self, tokens: Tensor, dtype: torch.dtype) -> list[Keys]:
        """Return what the net attends to of text rows [B, L, D], computed in `dtype`.

        Nothing is kept where gradients are wanted or weights have some, nor for tensors of torch.inference_mode, which
        do not count their changes.
        """
        weights = [weight for reader in self._unet.text_readers() for weight in reader.parameters()]
        # The steps of fused optimizers are not counted either, and they take gradients.
        changing = torch.is_grad_enabled() or any(weight.grad is not None for weight in weights)
        if changing or any(t.is_inference() for t in (tokens, *weights)):
            self._kept.clear()
            return self._unet.context(tokens.to(dtype))
        state = (_stamps((tokens, *weights)), dtype, _autocast_dtype(tokens.device.type))
        kept: tuple[object, list[Keys]] | None = self._kept.get(tokens)  # type: ignore[no-untyped-call]
        if kept is None or kept[0] != state:
            self._kept.clear()  # before the new ones are made: at full size and 256 rows they take 180 MB
            kept = self._kept[tokens] = state, self._unet.context(tokens.to(dtype))
        return kept[1]


def _stamps(tensors: Iterable[Tensor]) -> Stamps:
    """Say which memory each tensor has and how often it was written; no later tensor has both the same."""
    # A weak reference holds the storage's address, though not its memory, so that none is mistaken for a dead one.
    return [(StorageWeakRef(t.untyped_storage()), t._version) for t in tensors]  # type: ignore[no-untyped-call]


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
