"""The settings of the U-Net that OpenVINO computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import PositiveInt, model_validator

from kolors_kernel.component import BuildContext
from kolors_kernel.errors import RecipeError, needs
from kolors_kernel.values import ConditioningSpec, LatentSpec
from kolors_sdxl.config import SDXLUNet

if TYPE_CHECKING:
    from kolors_sdxl.openvino_backbone import OpenVINOUNetBackbone

_OF_THE_NET = {"type", "path", "architecture", "predicts", "context_projection"}
"""Settings of the plain U-Net that say what it is; the others say how torch computes."""


class SDXLUNetOpenVINO(SDXLUNet):
    """The SDXL U-Net computed by OpenVINO on a CPU: in about 0.6 of the time that torch takes; it never trains."""

    type: Literal["sdxl_unet_openvino"] = "sdxl_unet_openvino"  # type: ignore[assignment]
    trains: ClassVar[bool] = False
    shapes: PositiveInt = 1
    """How many shapes of latents, batch included, stay compiled: each holds the weights in memory once more."""

    @model_validator(mode="after")
    def _check_operations(self) -> Self:
        plain = SDXLUNet()
        for name in SDXLUNet.model_fields.keys() - _OF_THE_NET:
            if getattr(self, name) != getattr(plain, name):
                raise ValueError(f"{name} says how torch computes, and OpenVINO does it in its own way: leave it out")
        return self

    def build(self, ctx: BuildContext, *, conditioning: ConditioningSpec, latents: LatentSpec) -> OpenVINOUNetBackbone:
        """Make the backbone for inputs of these shapes; it compiles when it is first used.

        Raises WeightsError when its weights are of other shapes, RecipeError for another device than the CPU or for a
        dtype that OpenVINO does not compute in there, MissingDependency without OpenVINO.
        """
        with needs("openvino", extra="openvino", wanted_by=self.type):
            from kolors_sdxl.openvino_backbone import OpenVINOUNetBackbone
        if ctx.device != "cpu":
            raise RecipeError(f"{self.type} computes on cpu, not on {ctx.device}: use sdxl_unet there")
        if ctx.dtype not in ("float32", "bfloat16"):
            raise RecipeError(f"{self.type} computes in float32 or bfloat16, as CPUs do, not in {ctx.dtype}")
        return OpenVINOUNetBackbone(super().build(ctx, conditioning=conditioning, latents=latents), shapes=self.shapes)
