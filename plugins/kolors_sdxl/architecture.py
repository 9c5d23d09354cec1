"""What the U-Net and the VAE are made of, and how the released config.json files say it. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from kolors_kernel.component import Settings
from kolors_kernel.errors import WeightsError
from kolors_weights.places import Place

_FIXED_UNET: Mapping[str, object] = MappingProxyType(
    {
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "attention_type": "default",
        "center_input_sample": False,
        "class_embed_type": None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_norm": None,
        "downsample_padding": 1,
        "dropout": 0.0,
        "dual_cross_attention": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_only_cross_attention": None,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "num_attention_heads": None,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "reverse_transformer_layers_per_block": None,
        "time_cond_proj_dim": None,
        "time_embedding_act_fn": None,
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
        "upcast_attention": False,
        "use_linear_projection": True,
    }
)
_FIXED_VAE: Mapping[str, object] = MappingProxyType(
    {
        "act_fn": "silu",
        "in_channels": 3,
        "latents_mean": None,
        "latents_std": None,
        "mid_block_add_attention": True,
        "out_channels": 3,
        "shift_factor": None,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }
)
_WITHOUT_DEFAULT = {"addition_embed_type", "use_linear_projection"}
"""What an absent key of the U-Net's file would not mean: its default there is another value."""


class UNetArchitecture(Settings):
    """The inside of an SDXL U-Net: all but the widths of its inputs. The defaults are Kolors' released model."""

    block_channels: tuple[PositiveInt, ...] = (320, 640, 1280)
    """Channels at each resolution, the finest first; each following one halves the side."""
    layers_per_block: PositiveInt = 2
    """Residual blocks at each resolution on the way down; one more on the way up."""
    transformer_layers: tuple[NonNegativeInt, ...] = (0, 2, 10)
    """Transformer layers after each residual block of a resolution; the middle of the net has as many as the last."""
    heads: tuple[PositiveInt, ...] = (5, 10, 20)
    """Attention heads at each resolution; unused where there are no transformer layers."""
    cross_attention_width: PositiveInt = 2048
    """Width of the text rows inside the net."""
    text_projection: bool = True
    """Whether a linear layer brings the text rows to `cross_attention_width`; plain SDXL has none."""
    size_embedding_width: PositiveInt = 256
    """Width of the sinusoidal embedding of each of the six size numbers."""
    groups: PositiveInt = 32
    """Groups of every group norm."""
    norm_eps: PositiveFloat = 1e-5
    """What the residual blocks' group norms add to the variance."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        levels = len(self.block_channels)
        if not levels or {len(self.transformer_layers), len(self.heads)} != {levels}:
            raise ValueError("block_channels, transformer_layers and heads must say something for the same resolutions")
        _check_divisible(self.block_channels, self.groups)
        for channels, layers, heads in zip(self.block_channels, self.transformer_layers, self.heads, strict=True):
            if layers and channels % heads:
                raise ValueError(f"{channels} channels do not divide into {heads} heads")
        if not self.transformer_layers[-1]:
            raise ValueError("the last resolution needs transformer_layers, since the middle of the net has as many")
        if self.block_channels[0] % 2 or self.size_embedding_width % 2:
            raise ValueError("block_channels[0] and size_embedding_width must be even: half sines, half cosines")
        return self


class VAEArchitecture(Settings):
    """An SDXL VAE. The defaults are the released model."""

    block_channels: tuple[PositiveInt, ...] = (128, 256, 512, 512)
    """Channels at each resolution, the finest first; each following one halves the side."""
    layers_per_block: PositiveInt = 2
    """Residual blocks at each resolution of the encoder; the decoder has one more."""
    latent_channels: PositiveInt = 4
    """Channels of the latents."""
    groups: PositiveInt = 32
    """Groups of every group norm."""
    scaling_factor: PositiveFloat = 0.13025
    """What latents are multiplied by to have unit variance."""
    force_upcast: bool = True
    """Whether the net overflows in float16, so that it runs in float32 where float16 is asked for."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.block_channels:
            raise ValueError("block_channels must name at least one resolution")
        _check_divisible(self.block_channels, self.groups)
        return self

    @property
    def downscale(self) -> int:
        """How many pixels of a side one latent stands for."""
        return int(2 ** (len(self.block_channels) - 1))


@dataclass(frozen=True)
class UNetShape:
    """A U-Net with the widths of its inputs: all its parameters' shapes follow."""

    architecture: UNetArchitecture
    context_width: int
    pooled_width: int
    channels: int
    out_channels: int


def unet_from_layout(layout: Mapping[str, Any], *, where: Place) -> UNetShape:
    """Return the U-Net that a released config.json describes. Raises WeightsError naming what is not SDXL's in it."""
    _check_fixed(layout, _FIXED_UNET, where=where)
    try:
        channels = tuple(layout["block_out_channels"])
        types = tuple(layout["down_block_types"])
        if any(name not in ("DownBlock2D", "CrossAttnDownBlock2D") for name in types) or len(types) != len(channels):
            raise ValueError(f"unknown down_block_types {list(types)}")
        if list(layout["up_block_types"]) != [name.replace("Down", "Up") for name in reversed(types)]:
            raise ValueError("up_block_types do not mirror down_block_types")
        depths = _per_level(layout.get("transformer_layers_per_block", 1), len(channels))
        projected = layout.get("encoder_hid_dim") is not None
        if projected and layout.get("encoder_hid_dim_type") not in (None, "text_proj"):
            raise ValueError(f"encoder_hid_dim_type is {layout['encoder_hid_dim_type']!r}, should be 'text_proj'")
        size_width = int(layout["addition_time_embed_dim"])
        architecture = UNetArchitecture(
            block_channels=channels,
            layers_per_block=_one(layout.get("layers_per_block", 2)),
            transformer_layers=tuple(d if "Attn" in name else 0 for d, name in zip(depths, types, strict=True)),
            heads=_per_level(layout.get("attention_head_dim", 8), len(channels)),  # counts, in spite of the name
            cross_attention_width=_one(layout["cross_attention_dim"]),
            text_projection=projected,
            size_embedding_width=size_width,
            groups=layout.get("norm_num_groups", 32),
            norm_eps=layout.get("norm_eps", 1e-5),
        )
        return UNetShape(
            architecture,
            context_width=int(layout["encoder_hid_dim"]) if projected else architecture.cross_attention_width,
            pooled_width=int(layout["projection_class_embeddings_input_dim"]) - 6 * size_width,
            channels=int(layout.get("in_channels", 4)),
            out_channels=int(layout.get("out_channels", 4)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{where} does not describe an SDXL U-Net: {_reason(error)}") from error


def unet_to_layout(shape: UNetShape) -> dict[str, Any]:
    """Return the released config.json layout of a U-Net, which diffusers reads too."""
    a = shape.architecture
    down = ["CrossAttnDownBlock2D" if layers else "DownBlock2D" for layers in a.transformer_layers]
    return {
        **_FIXED_UNET,
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.27.0",
        "addition_time_embed_dim": a.size_embedding_width,
        "attention_head_dim": list(a.heads),
        "block_out_channels": list(a.block_channels),
        "cross_attention_dim": a.cross_attention_width,
        "down_block_types": down,
        "encoder_hid_dim": shape.context_width if a.text_projection else None,
        "encoder_hid_dim_type": "text_proj" if a.text_projection else None,
        "in_channels": shape.channels,
        "layers_per_block": a.layers_per_block,
        "norm_eps": a.norm_eps,
        "norm_num_groups": a.groups,
        "out_channels": shape.out_channels,
        "projection_class_embeddings_input_dim": shape.pooled_width + 6 * a.size_embedding_width,
        "sample_size": 128,
        "transformer_layers_per_block": [layers or 1 for layers in a.transformer_layers],
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
    }


def vae_from_layout(layout: Mapping[str, Any], *, where: Place) -> VAEArchitecture:
    """Return the VAE that a released config.json describes. Raises WeightsError naming what is not SDXL's in it."""
    _check_fixed(layout, _FIXED_VAE, where=where)
    try:
        if set(layout["down_block_types"]) != {"DownEncoderBlock2D"}:
            raise ValueError(f"unknown down_block_types {layout['down_block_types']}")
        return VAEArchitecture(
            block_channels=tuple(layout["block_out_channels"]),
            layers_per_block=layout.get("layers_per_block", 1),
            latent_channels=layout.get("latent_channels", 4),
            groups=layout.get("norm_num_groups", 32),
            scaling_factor=layout.get("scaling_factor", 0.18215),
            force_upcast=layout.get("force_upcast", True),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{where} does not describe an SDXL VAE: {_reason(error)}") from error


def vae_to_layout(architecture: VAEArchitecture, *, scaling_factor: float) -> dict[str, Any]:
    """Return the released config.json layout of a VAE, which diffusers reads too."""
    levels = len(architecture.block_channels)
    return {
        **_FIXED_VAE,
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.27.0",
        "block_out_channels": list(architecture.block_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": architecture.force_upcast,
        "latent_channels": architecture.latent_channels,
        "layers_per_block": architecture.layers_per_block,
        "norm_num_groups": architecture.groups,
        "sample_size": 1024,
        "scaling_factor": scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _check_fixed(layout: Mapping[str, Any], fixed: Mapping[str, object], *, where: Place) -> None:
    for key, value in fixed.items():
        found = layout.get(key, None if key in _WITHOUT_DEFAULT else value)
        if found != value:
            raise WeightsError(f"{where} describes another net: {key} is {found!r}, only {value!r} is known here")


def _check_divisible(block_channels: tuple[int, ...], groups: int) -> None:
    for channels in block_channels:
        if channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups")


def _per_level(value: Any, levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


def _one(value: Any) -> int:
    several = {value} if isinstance(value, int) else set(value)
    if len(several) != 1:
        raise ValueError(f"{value} differs between resolutions, which is not supported")
    return int(several.pop())


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(str(problem["msg"]) for problem in error.errors())
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
