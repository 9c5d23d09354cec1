"""From what a data source yields to what a graph reads, on the device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from kolors_kernel.values import Batch, Conditioning


def ports(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Return what the batch holds as graph inputs on the device: pictures in [-1, 1], latents in float32."""
    found: dict[str, Any] = {"size": batch.size.to(device), "weight": batch.weight.to(device)}
    if batch.images is not None:
        found["images"] = to_images(batch.images, device)
    if batch.latents is not None:
        found["latents"] = batch.latents.to(device).float()
    if batch.captions is not None:
        found["captions"] = batch.captions
    if batch.conditioning is not None:
        found["conditioning"] = on_device(batch.conditioning, device)
    return found


def to_images(pixels: Tensor, device: torch.device) -> Tensor:
    """Turn pixels uint8 [B, 3, H, W] into images in [-1, 1]; they travel as bytes, a quarter of what floats take."""
    return pixels.to(device).float().contiguous().div_(127.5).sub_(1)


def on_device(conditioning: Conditioning, device: torch.device) -> Conditioning:
    """Move a conditioning to a device, in float32."""
    bias = conditioning.key_bias
    return replace(
        conditioning,
        tokens=conditioning.tokens.to(device).float(),
        pooled=conditioning.pooled.to(device).float(),
        key_bias=None if bias is None else bias.to(device),
    )
