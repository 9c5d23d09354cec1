"""The VAE as an autoencoder: loaded, encoding, decoding whole or in tiles, saved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor, nn

from kolors_sdxl.architecture import VAEArchitecture, vae_to_layout
from kolors_sdxl.free_memory import free_bytes
from kolors_sdxl.freezing import UNFROZEN, freeze
from kolors_sdxl.vae import VAE
from kolors_weights.modules import fit, without_weights
from kolors_weights.reading import find_weights, open_state
from kolors_weights.writing import write_state

if TYPE_CHECKING:
    from pathlib import Path

    from kolors_kernel.protocols import Attention, GroupNormSiLU
    from kolors_weights.places import Place

logger = logging.getLogger(__name__)
STEM = "diffusion_pytorch_model"
"""What the released folders call the file of weights."""
PEAK = 5
"""Copies of the widest activation, the second level's channels at the picture's full size, that decoding holds at its
peak: the released VAE was measured at 4.1 to 4.7 from 384 to 1024 pixels, in float32 and in bfloat16."""
SHARE = 0.5
"""How much of the free memory decoding may take before it goes to tiles."""
SMALLEST = 256
"""The side in pixels below which tiles are not made, however little is free."""


class SDXLVAEAutoencoder:
    """Turns pictures into latents and back (2).

    `tile` is the side of tiles in pixels, None: decode whole; auto: as `free`, the memory that can be taken, allows.
    `scaling_factor` may be set after a training, so that latents have unit variance; `save` writes it.
    """

    def __init__(
        self,
        module: VAE,
        architecture: VAEArchitecture,
        *,
        tile: int | Literal["auto"] | None = None,
        free: Callable[[torch.device], int | None] = free_bytes,
    ) -> None:
        self.module: nn.Module = module
        self.architecture, self.tile, self._vae, self._free = architecture, tile, module, free
        self.scaling_factor = architecture.scaling_factor
        self._decoded, self._frozen = "nothing yet", UNFROZEN

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
        """Latents [B, C, h, w], scaled -> [B, 3, H, W] in the same dtype, not clamped; in tiles if so set.

        With `tile` auto, pictures that do not fit into the memory together are decoded one by one, which changes
        nothing, and one that does not fit alone in tiles, which does and is logged.
        """
        unscaled = latents.to(self._dtype) / self.scaling_factor
        alone, tile = self._ways(unscaled)
        if alone:
            return torch.cat([self.decode(latents[at : at + 1]) for at in range(len(latents))])
        self._decoded = "whole" if tile is None else f"in tiles of {tile} pixels"
        size = None if tile is None else tile // self.architecture.downscale
        if size is None or max(unscaled.shape[2:]) <= size:
            return self.reconstruct(unscaled).to(latents.dtype)
        return self._decode_tiles(unscaled, size).to(latents.dtype)

    def freeze(self) -> None:
        """Pack the weights; they can no longer be trained."""
        self._frozen = freeze(self.module)

    def report(self) -> Mapping[str, str]:
        """Say how the weights lie, and how pictures were decoded last."""
        return {**self._frozen, "decoding": self._decoded}

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
        return next(self._vae.parameters()).dtype

    def _ways(self, latents: Tensor) -> tuple[bool, int | None]:
        """Return whether to decode these latents one by one, and the side of tiles in pixels, None for whole."""
        if self.tile != "auto":
            return False, self.tile
        free = self._free(latents.device)
        height, width = (side * self.architecture.downscale for side in latents.shape[2:])
        widest = self.architecture.block_channels[:2][-1]
        pixel = PEAK * widest * latents.element_size()  # bytes
        if free is None or len(latents) * height * width * pixel <= SHARE * free:
            return False, None
        if len(latents) > 1:
            return True, None
        # Multiples of 64 pixels suit every downscale there is.
        tile = max(SMALLEST, int((SHARE * free / pixel) ** 0.5) // 64 * 64)
        logger.warning(
            "decoding %d x %d pixels in tiles of %d: whole it takes about %.1f GiB, and %.1f GiB are free; the picture "
            "is close but not the same (tile: null decodes whole)",
            height,
            width,
            tile,
            height * width * pixel / 2**30,
            free / 2**30,
        )
        return False, tile

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
