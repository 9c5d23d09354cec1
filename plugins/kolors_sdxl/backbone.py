"""The U-Net as a backbone: loaded, asked for predictions, saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from kolors_sdxl.architecture import UNetShape, unet_to_layout
from kolors_sdxl.freezing import UNFROZEN, freeze
from kolors_sdxl.remembering import TextKeys
from kolors_sdxl.unet import UNet
from kolors_weights.modules import check_fit, fit, without_weights
from kolors_weights.reading import find_weights, open_state
from kolors_weights.writing import write_state

if TYPE_CHECKING:
    from pathlib import Path

    from kolors_kernel.values import Conditioning
    from kolors_sdxl.blocks import Ops
    from kolors_weights.places import Place

STEM = "diffusion_pytorch_model"
"""What the released folders call the file of weights."""


class SDXLUNetBackbone:
    """Predicts the noise (or v) in latents (2)."""

    def __init__(self, module: UNet, shape: UNetShape, *, predicts: Literal["epsilon", "v"]) -> None:
        self.module: nn.Module = module
        self.shape = shape
        self.predicts: Literal["epsilon", "v"] = predicts
        self._unet, self._run, self._text_keys, self._frozen = module, module, TextKeys(module), UNFROZEN

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, size: Tensor) -> Tensor:
        """noisy [B, C, h, w], timesteps [B], size [B, 6] (original h w, crop top left, target h w; pixels)
        -> [B, C, h, w], in the dtype of `noisy`.

        Computed in the dtype of the weights. A key bias is added to the scores of the text rows. What is attended to
        of the text is computed once for a text, which is recognised by its tensor, where no gradients are wanted.
        """
        dtype, bias = self._dtype, conditioning.key_bias
        # In float32 whatever the net computes in: the log of a count loses a percent in bfloat16.
        mask = None if bias is None else bias[:, None, None, :].to(torch.promote_types(dtype, torch.float32))
        context = self._text_keys(conditioning.tokens, dtype)
        out: Tensor = self._run(noisy.to(dtype), timesteps, context, conditioning.pooled.to(dtype), size, mask)
        return out.to(noisy.dtype)

    def compile(self) -> None:
        """Have torch.compile make the net's kernels at the first prediction; `freeze` then does nothing."""
        self._run = torch.compile(self._unet)  # type: ignore[assignment]
        self._frozen = {"weights": "as they were read: torch.compile is on, which cannot see into packed ones"}

    def freeze(self) -> None:
        """Pack the weights; they can no longer be trained."""
        if self._run is not self._unet:
            return
        # What reads the text runs once for a text, and stays plain so that a change of it is seen.
        self._frozen = freeze(self.module, keep=self._unet.text_readers())

    def report(self) -> Mapping[str, str]:
        """Say how the weights lie and which op ran, and why not a faster one."""
        kinds = ("attention", "group_norm_silu", "geglu", "add_layer_norm")
        ops = {kind: _told(getattr(self._unet.ops, kind)) for kind in kinds}
        return {**ops, **self._frozen}

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def save(self, folder: Path) -> None:
        """Write config.json and the weights as the released folders have them; diffusers reads them too."""
        write_state(folder, self.module.state_dict(), unet_to_layout(self.shape), stem=STEM)


def _told(op: object) -> str:
    """Say what an op says of itself where it chooses among several, else what it is."""
    return str(op.report()) if hasattr(op, "report") else type(op).__name__


def random_unet(shape: UNetShape, ops: Ops, *, device: str) -> UNet:
    """Return a U-Net with torch's own random weights, float32, made on the device."""
    with torch.device(device):
        return UNet(shape, ops)


def load_unet(folder: Place, shape: UNetShape, ops: Ops, *, device: str, dtype: str) -> UNet:
    """Return the U-Net with the weights in `folder`."""
    file = find_weights(folder, STEM)
    with without_weights():
        module = UNet(shape, ops)
    fit(module, open_state(file), where=file, dtype=getattr(torch, dtype), device=device)
    return module


def load_unet_for_new_text(
    folder: Place, old: UNetShape, ops: Ops, *, context: int, pooled: int, device: str, dtype: str
) -> tuple[UNet, UNetShape]:
    """Return the U-Net in `folder`, of shape `old`, made to read text of other widths, and its new shape.

    The projection of the text rows and the pooled text's part of `add_embedding` start fresh; all else is kept.
    """
    file = find_weights(folder, STEM)
    state = open_state(file).renamed(lambda key: None if key.startswith("encoder_hid_proj.") else key)
    architecture = old.architecture.model_copy(update={"text_projection": True})
    shape = replace(old, architecture=architecture, context_width=context, pooled_width=pooled)
    with without_weights():
        unprojected = replace(old, architecture=architecture.model_copy(update={"text_projection": False}))
        check_fit(UNet(unprojected, ops), state, where=file)  # in terms of the file, before anything is replaced
        module = UNet(shape, ops)
    key = "add_embedding.linear_1.weight"
    sizes = state[key][:, old.pooled_width :]
    fresh = nn.Linear(pooled + sizes.shape[1], sizes.shape[0]).weight.detach()[:, :pooled]
    new = nn.Linear(context, architecture.cross_attention_width).state_dict(prefix="encoder_hid_proj.")
    new[key] = torch.cat([fresh.to(sizes.dtype), sizes], dim=1)
    fit(module, state.updated(new, where=file), where=file, dtype=getattr(torch, dtype), device=device)
    return module, shape
