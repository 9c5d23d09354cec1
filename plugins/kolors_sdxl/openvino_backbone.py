"""The U-Net as a backbone that OpenVINO computes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kolors_sdxl.backbone import SDXLUNetBackbone
from kolors_sdxl.openvino_ops import OPS
from kolors_sdxl.openvino_unet import CompiledUNet
from kolors_sdxl.unet import UNet
from kolors_weights.modules import without_weights

if TYPE_CHECKING:
    from kolors_kernel.values import Conditioning

logger = logging.getLogger(__name__)


class OpenVINOUNetBackbone(SDXLUNetBackbone):
    """Predicts the noise (or v) in latents (2), without gradients.

    `module` holds the only plain copy of the weights, from which the text is read and each shape of latents compiled,
    on its first use. Weights that are loaded into it are compiled anew.
    """

    def __init__(self, plain: SDXLUNetBackbone, *, shapes: int) -> None:
        """Take over the weights of `plain`; at most `shapes` shapes stay compiled."""
        with without_weights():
            unet = UNet(plain.shape, OPS)
        unet.load_state_dict(plain.module.state_dict(), assign=True)
        super().__init__(unet.requires_grad_(False), plain.shape, predicts=plain.predicts)
        self._shapes = shapes
        self._compiled: dict[tuple[tuple[int, ...], int], CompiledUNet] = {}  # by shape and threads
        unet.register_load_state_dict_post_hook(self._forget)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, size: Tensor) -> Tensor:
        """noisy [B, C, h, w], timesteps [B], size [B, 6] (original h w, crop top left, target h w; pixels)
        -> [B, C, h, w], in the dtype of `noisy`, without gradients.

        Computed in the dtype of the weights; times, sizes and the text's key bias in float32. The first call for
        latents of a shape compiles the net.
        """
        dtype, tokens = self._dtype, conditioning.tokens
        bias = tokens.new_zeros(tokens.shape[:2]) if conditioning.key_bias is None else conditioning.key_bias
        keys, pooled = self._text_keys(tokens, dtype), conditioning.pooled.to(dtype)
        compiled = self._compiled_for(noisy, keys, pooled)
        out = compiled(noisy.to(dtype), timesteps.float(), keys, pooled, size.float(), bias[:, None, None].float())
        return out.to(noisy.dtype)

    def freeze(self) -> None:
        """Do nothing: the weights are packed as they are compiled."""

    def report(self) -> Mapping[str, str]:
        """Say which shapes are compiled, in which precision and for how many threads, and how long that took."""
        said = [f"{_text(shape)}: {_described(net)}" for (shape, _), net in self._compiled.items()]
        return {"openvino": "; ".join(said) or "nothing is compiled before the first prediction"}

    def _forget(self, module: nn.Module, misfits: object) -> None:
        self._compiled.clear()

    def _compiled_for(self, noisy: Tensor, keys: list[tuple[Tensor, Tensor]], pooled: Tensor) -> CompiledUNet:
        """Return the net for latents of this shape, which becomes the one last used."""
        key = tuple(noisy.shape), torch.get_num_threads()
        net = self._compiled.pop(key, None)
        if net is None:
            while len(self._compiled) >= self._shapes:
                self._compiled.pop(next(iter(self._compiled)))  # before the next: each holds the weights once more
            net = CompiledUNet(self._unet, key[0], keys, pooled.shape[1], threads=key[1])
            logger.info("compiled the U-Net for latents %s: %s", _text(key[0]), _described(net))
        self._compiled[key] = net
        return net


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _described(net: CompiledUNet) -> str:
    precisions = " and ".join(f"{count} parts in {name}" for name, count in net.precisions.items())
    return f"{precisions}, threads: {net.threads}, compiled in {net.seconds:.1f} s"
