"""The U-Net of diffusers that the plugins' tests compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from torch import nn

Peer: TypeAlias = Callable[..., Any]


@pytest.fixture(scope="session")
def peer() -> Peer:
    """Return what makes a small U-Net of Kolors' shape by diffusers, every weight random, the norms' too.

    It is for text 24 wide, pooled to 20; settings of diffusers' change it.
    """
    from diffusers import UNet2DConditionModel

    kolors_shaped: dict[str, Any] = {
        "block_out_channels": (16, 32, 48),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 3),
        "attention_head_dim": (1, 2, 3),
        "layers_per_block": 2,
        "cross_attention_dim": 40,
        "use_linear_projection": True,
        "encoder_hid_dim": 24,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
        "norm_num_groups": 8,
    }

    def make(**changes: Any) -> Any:
        torch.manual_seed(0)
        net = UNet2DConditionModel(**{**kolors_shaped, **changes}).eval()
        for parameter in net.parameters():
            nn.init.normal_(parameter, mean=float(parameter.dim() == 1) * 0.5, std=0.1)
        return net

    return make
