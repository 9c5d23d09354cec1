"""The settings of the SDXL U-Net and VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from kolors_kernel.component import BuildContext
from kolors_kernel.errors import WeightsError
from kolors_kernel.kinds import (
    AddLayerNormConfig,
    AttentionConfig,
    AutoencoderConfig,
    BackboneConfig,
    GEGLUConfig,
    GroupNormSiLUConfig,
)
from kolors_kernel.values import ConditioningSpec, LatentSpec
from kolors_sdxl.architecture import UNetArchitecture, UNetShape, VAEArchitecture, unet_from_layout, vae_from_layout
from kolors_weights.places import WeightsPath
from kolors_weights.reading import read_config

if TYPE_CHECKING:
    from kolors_sdxl.autoencoder import SDXLVAEAutoencoder
    from kolors_sdxl.backbone import SDXLUNetBackbone

_TWO_SOURCES = "path and architecture are both given: the architecture of a path is in its config.json"


class SDXLUNet(BackboneConfig):
    """The SDXL U-Net with a linear layer that brings ChatGLM3's text to its width, as Kolors has it (2)."""

    type: Literal["sdxl_unet"] = "sdxl_unet"
    path: WeightsPath | None = None
    """A folder with config.json and the weights in the released layout, or such a file of weights beside a config.json;
    none: random weights."""
    architecture: UNetArchitecture | None = None
    """The inside of a net with random weights; none: the released one. Other parts say how wide the inputs are."""
    predicts: Literal["epsilon", "v"] = "epsilon"
    """What the net was, or is to be, trained to predict; the released file does not say."""
    context_projection: Literal["weights", "new"] = "weights"
    """Where the layers that read the text come from: the weights, or new and random, for another text encoder."""
    attention: AttentionConfig = Field(default={"type": "auto"}, validate_default=True)
    """How attention is computed."""
    group_norm_silu: GroupNormSiLUConfig = Field(default={"type": "auto"}, validate_default=True)
    """How group norm, followed by SiLU or not, is computed."""
    geglu: GEGLUConfig = Field(default={"type": "auto"}, validate_default=True)
    """How the gated activation is computed."""
    add_layer_norm: AddLayerNormConfig = Field(default={"type": "auto"}, validate_default=True)
    """How the results of attention are added to the rows and normalised."""
    gradient_checkpointing: bool = False
    """Whether training keeps less in memory and computes it again: about a quarter slower."""
    compile: bool = False
    """Whether torch.compile makes the net's kernels at the first prediction, which takes minutes. Meant for
    GPUs, where it has not been timed; a compiled net does without the packed weights that a frozen one has on CPUs."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.path is not None and self.architecture is not None:
            raise ValueError(_TWO_SOURCES)
        if self.path is None and self.context_projection == "new":
            raise ValueError("context_projection: new needs a path, since without weights everything is new")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Return a net of 0.3 million parameters at two resolutions."""
        return cls(
            architecture=UNetArchitecture(
                block_channels=(16, 32),
                layers_per_block=1,
                transformer_layers=(0, 1),
                heads=(1, 2),
                cross_attention_width=32,
                size_embedding_width=8,
                groups=8,
            )
        )

    def misfit(self, conditioning: ConditioningSpec, latents: LatentSpec) -> str | None:
        """Say why this net cannot take such inputs, or return None; reads at most a config.json."""
        shape, name = self._shape(conditioning, latents), self.path or self.type
        if (shape.channels, shape.out_channels) != (latents.channels + latents.given, latents.channels):
            return (
                f"{name} {_latents_of(shape)}, but the autoencoder's have {latents.channels} and the recipe gives "
                f"{latents.given} more"
            )
        if self.context_projection == "new":
            return None
        if shape.context_width != conditioning.width:
            return (
                f"{name} expects conditioning {shape.context_width} wide, but the text encoder gives "
                f"{conditioning.width}; {self._way_out(conditioning)}"
            )
        if shape.pooled_width != conditioning.pooled:
            return (
                f"{name} expects pooled conditioning {shape.pooled_width} wide, but the text encoder gives "
                f"{conditioning.pooled}; {self._way_out(conditioning)}"
            )
        return None

    def build(self, ctx: BuildContext, *, conditioning: ConditioningSpec, latents: LatentSpec) -> SDXLUNetBackbone:
        """Make the backbone for inputs of these shapes. Raises WeightsError when its weights are of other shapes."""
        from kolors_sdxl.backbone import SDXLUNetBackbone, load_unet, load_unet_for_new_text, random_unet
        from kolors_sdxl.blocks import Ops, place, run_checkpointed, run_plainly

        problem = self.misfit(conditioning, latents)
        if problem is not None:
            raise WeightsError(problem)
        shape = self._shape(conditioning, latents)
        run = run_checkpointed if self.gradient_checkpointing else run_plainly
        attention, group_norm_silu = self.attention.build(ctx), self.group_norm_silu.build(ctx)
        ops = Ops(attention, group_norm_silu, self.geglu.build(ctx), self.add_layer_norm.build(ctx), run)
        if self.path is None:
            module = random_unet(shape, ops, device=ctx.device)
        elif self.context_projection == "new":
            module, shape = load_unet_for_new_text(
                self.path,
                shape,
                ops,
                context=conditioning.width,
                pooled=conditioning.pooled,
                device=ctx.device,
                dtype=ctx.dtype,
            )
        else:
            module = load_unet(self.path, shape, ops, device=ctx.device, dtype=ctx.dtype)
        module = place(module, device=ctx.device, dtype=ctx.dtype)
        backbone = SDXLUNetBackbone(module, shape, predicts=self.predicts)
        if self.compile:
            backbone.compile()
        return backbone

    def _shape(self, conditioning: ConditioningSpec, latents: LatentSpec) -> UNetShape:
        """Return the net's shape: what its file says, or made for these inputs."""
        if self.path is not None:
            return unet_from_layout(read_config(self.path), where=self.path / "config.json")
        architecture = self.architecture or UNetArchitecture()
        width = conditioning.width if architecture.text_projection else architecture.cross_attention_width
        return UNetShape(architecture, width, conditioning.pooled, latents.channels + latents.given, latents.channels)

    def _way_out(self, conditioning: ConditioningSpec) -> str:
        if self.path is not None:
            return "set context_projection: new"
        return f"set architecture.text_projection: true or architecture.cross_attention_width: {conditioning.width}"


def _latents_of(shape: UNetShape) -> str:
    """Say what latents a net takes."""
    given = shape.channels - shape.out_channels
    kind = f"an inpainting net, which is given {given} channels beside" if given > 0 else "no inpainting net and takes"
    return f"is {kind} latents of {shape.channels - max(given, 0)} channels and predicts {shape.out_channels}"


class SDXLVAE(AutoencoderConfig):
    """The SDXL VAE: one latent of four channels for 8 x 8 pixels as released (2)."""

    type: Literal["sdxl_vae"] = "sdxl_vae"
    path: WeightsPath | None = None
    """A folder with config.json and the weights in the released layout, or such a file of weights beside a config.json;
    none: random weights."""
    architecture: VAEArchitecture | None = None
    """The inside of a net with random weights; none: the released one."""
    tile: PositiveInt | Literal["auto"] | None = "auto"
    """Decode in overlapping, blended tiles of this side in pixels: less memory, and a picture that is close but not
    the same, since norms and attention see one tile at a time. `auto`: whole where that takes at most half of the
    memory that is free, else in tiles that do, and a warning says so. None: decode whole."""
    attention: AttentionConfig = Field(default={"type": "auto"}, validate_default=True)
    """How attention is computed."""
    group_norm_silu: GroupNormSiLUConfig = Field(default={"type": "auto"}, validate_default=True)
    """How group norm, followed by SiLU or not, is computed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.path is not None and self.architecture is not None:
            raise ValueError(_TWO_SOURCES)
        if isinstance(self.tile, int):
            step = self.spec().downscale
            if self.tile % step or self.tile < 4 * step:
                raise ValueError(f"tile is {self.tile} pixels, must be a multiple of {step} and at least {4 * step}")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Return a net of 0.3 million parameters at three resolutions: one latent for 4 x 4 pixels."""
        return cls(architecture=VAEArchitecture(block_channels=(16, 32, 32), layers_per_block=1, groups=8))

    def spec(self) -> LatentSpec:
        """Return the shape of the latents; reads at most a config.json."""
        architecture = self._architecture()
        return LatentSpec(channels=architecture.latent_channels, downscale=architecture.downscale)

    def build(self, ctx: BuildContext) -> SDXLVAEAutoencoder:
        """Make the autoencoder. Raises WeightsError when its weights are damaged."""
        from kolors_sdxl.autoencoder import SDXLVAEAutoencoder, load_vae, random_vae
        from kolors_sdxl.blocks import place

        architecture = self._architecture()
        attention, op = self.attention.build(ctx), self.group_norm_silu.build(ctx)
        dtype = "float32" if architecture.force_upcast and ctx.dtype == "float16" else ctx.dtype
        if self.path is None:
            module = random_vae(architecture, attention=attention, op=op, device=ctx.device)
        else:
            module = load_vae(self.path, architecture, attention=attention, op=op, device=ctx.device, dtype=dtype)
        return SDXLVAEAutoencoder(place(module, device=ctx.device, dtype=dtype), architecture, tile=self.tile)

    def _architecture(self) -> VAEArchitecture:
        if self.path is not None:
            return vae_from_layout(read_config(self.path), where=self.path / "config.json")
        return self.architecture or VAEArchitecture()
