"""The VAE as an autoencoder: loaded, encoding, decoding whole or in tiles, saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from kolors_sdxl.architecture import VAEArchitecture, vae_to_layout
from kolors_sdxl.vae import VAE
from kolors_weights.modules import fit, without_weights
from kolors_weights.reading import find_weights, open_state
from kolors_weights.writing import write_state

if TYPE_CHECKING:
    from pathlib import Path

    from kolors_kernel.protocols import Attention, GroupNormSiLU
    from kolors_weights.places import Place

STEM = "diffusion_pytorch_model"
"""What the released folders call the file of weights."""


class SDXLVAEAutoencoder:
    """Turns pictures into latents and back (2).

    `scaling_factor` may be set after a training, so that latents have unit variance; `save` writes it.
    """

    def __init__(self, module: VAE, architecture: VAEArchitecture, *, tile: int | None = None) -> None:
        self.module: nn.Module = module
        self.architecture, self.tile, self._vae = architecture, tile, module
        self.scaling_factor = architecture.scaling_factor

    def encode(self, images: Tensor, *, generator: Generator | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> latents [B, C, h, w], multiplied by the scaling factor, in the same dtype.

        Draws from the posterior with `generator`, or takes its mean without one. Raises ValueError unless H and W
        are multiples of the downscale.
        """
        mean, log_variance = self.posterior(images)
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=mean.dtype)
            mean = mean + torch.exp(0.5 * log_variance) * noise.to(mean.device)
        return (mean * self.scaling_factor).to(images.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w], scaled -> [B, 3, H, W] in the same dtype, not clamped; in tiles if so set."""
        unscaled = latents.to(self._dtype) / self.scaling_factor
        tile = None if self.tile is None else self.tile // self.architecture.downscale
        if tile is None or max(unscaled.shape[2:]) <= tile:
            return self.reconstruct(unscaled).to(latents.dtype)
        return self._decode_tiles(unscaled, tile).to(latents.dtype)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> mean and log variance of the unscaled latents, [B, C, h, w] each.

        The log variance is kept between -30 and 20. Raises ValueError unless H and W are multiples of the downscale.
        """
        height, width = images.shape[2:]
        if height % self.architecture.downscale or width % self.architecture.downscale:
            raise ValueError(
                f"pictures of {height} x {width} pixels (height x width) cannot be encoded: both must be multiples "
                f"of {self.architecture.downscale}"
            )
        mean, log_variance = self._vae.encode(images.to(self._dtype)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Decode unscaled latents [B, C, h, w] -> [B, 3, H, W], whole."""
        return self._vae.decode(latents.to(self._dtype))

    def save(self, folder: Path) -> None:
        """Write config.json and the weights as the released folders have them; diffusers reads them too."""
        config = vae_to_layout(self.architecture, scaling_factor=self.scaling_factor)
        write_state(folder, self.module.state_dict(), config, stem=STEM)

    @property
    def _dtype(self) -> torch.dtype:
        return self._vae.post_quant_conv.weight.dtype

    def _decode_tiles(self, latents: Tensor, tile: int) -> Tensor:
        """Decode overlapping tiles and average them, each weighted by the distance to its own edge."""
        factor = self.architecture.downscale
        batch, _, height, width = latents.shape
        picture = latents.new_zeros(batch, 3, height * factor, width * factor)
        total = latents.new_zeros(height * factor, width * factor)
        for top in _starts(height, tile):
            for left in _starts(width, tile):
                decoded = self.reconstruct(latents[:, :, top : top + tile, left : left + tile])
                rows, columns = (_ramp(side, tile * factor).to(latents) for side in decoded.shape[2:])
                weight = rows[:, None] * columns
                place = (
                    slice(top * factor, top * factor + len(rows)),
                    slice(left * factor, left * factor + len(columns)),
                )
                picture[:, :, *place] += decoded * weight
                total[*place] += weight
        return picture / total


def random_vae(architecture: VAEArchitecture, *, attention: Attention, op: GroupNormSiLU, device: str) -> VAE:
    """Return a VAE with torch's own random weights, float32, made on the device."""
    with torch.device(device):
        return VAE(architecture, attention=attention, op=op)


def load_vae(
    folder: Place, architecture: VAEArchitecture, *, attention: Attention, op: GroupNormSiLU, device: str, dtype: str
) -> VAE:
    """Return the VAE with the weights in `folder`."""
    file = find_weights(folder, STEM)
    with without_weights():
        module = VAE(architecture, attention=attention, op=op)
    fit(module, open_state(file), where=file, dtype=getattr(torch, dtype), device=device)
    return module


def _starts(side: int, tile: int) -> list[int]:
    """Return where tiles start that cover `side`, neighbours sharing at least a quarter; the last ends at the edge."""
    if side <= tile:
        return [0]
    count = -(-(side - tile) // max(1, tile - tile // 4)) + 1
    return [round(index * (side - tile) / (count - 1)) for index in range(count)]


def _ramp(side: int, tile: int) -> Tensor:
    """Return weights [side] that rise from both edges over a quarter of a tile's side and are 1 between."""
    steps = torch.arange(side, dtype=torch.float32) + 0.5
    return (torch.minimum(steps, side - steps) / max(1, tile // 4)).clamp(max=1.0)
