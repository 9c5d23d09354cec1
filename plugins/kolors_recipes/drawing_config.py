"""What the recipes that draw pictures can say: from prompts alone, from a picture, and into a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from kolors_kernel.component import BuildContext, ExistingPath
from kolors_kernel.values import LatentSpec
from kolors_recipes import tiny
from kolors_recipes.config import DrawingRecipe, Seed

if TYPE_CHECKING:
    from kolors_kernel.graph import Graph
    from kolors_kernel.protocols import Job


class Pictures(DrawingRecipe):
    """What every recipe shares that draws pictures to be looked at: a PNG each, a contact sheet, report.json."""

    prompt: str | None = None
    """What to draw, in any language the text encoder reads; in place of `prompts` and `prompts_file`."""
    prompts: list[str] = Field(default=[])
    """What to draw, several."""
    prompts_file: ExistingPath | None = None
    """A text file with a prompt on each line, in UTF-8; empty lines and those that begin with # are passed over."""
    pictures_per_prompt: PositiveInt = 1
    """How many pictures are drawn of each prompt, one after the other."""
    seeds: list[Seed] = Field(default=[])
    """The seed of each picture, as many as there are pictures; none: `seed` and up."""
    columns: PositiveInt = 4
    """Pictures in a row of the contact sheet."""

    @model_validator(mode="after")
    def _there_is_something_to_draw(self) -> Self:
        if self.prompt is None and not self.prompts and self.prompts_file is None:
            raise ValueError("there is nothing to draw: give a prompt, prompts or a prompts_file")
        if self.prompt is None and self.prompts and self.prompts_file is not None:
            raise ValueError("prompts and prompts_file are both given: leave one out")
        return self


class TextToImage(Pictures):
    """Draw pictures from prompts: a PNG each, a contact sheet, and a report of time and memory."""

    type: Literal["text_to_image"] = "text_to_image"

    def build(self, ctx: BuildContext) -> Job:
        """Return the job that draws; the model is built unless the parts are held one at a time."""
        from kolors_recipes.pictures_job import PicturesJob

        return PicturesJob(self, ctx)

    @classmethod
    def tiny(cls) -> Self:
        """Return one 16-pixel picture by random weights in two steps."""
        return cls(**tiny.drawing(), prompts=["一只猫"])


class FromPicture(Pictures):
    """What the recipes share that begin with a picture."""

    image: ExistingPath
    """The picture to begin with, in any form Pillow reads. It is turned as its EXIF says, laid on white where it is
    transparent, and, if it is not `width` x `height`, scaled to cover that and cut around the middle."""


class ImageToImage(FromPicture):
    """Draw pictures from a prompt and a picture, which they resemble the more the less the strength."""

    type: Literal["image_to_image"] = "image_to_image"
    strength: Annotated[float, Field(gt=0, le=1)] = 0.3
    """How much of the steps is walked, from the picture with that much noise: 1 leaves little of the picture."""

    def graphs(self) -> Mapping[str, Graph]:
        """Return the graphs of the phases."""
        from kolors_recipes.drawing import phase_graphs
        from kolors_recipes.from_picture import IMAGE_TO_IMAGE

        return phase_graphs(IMAGE_TO_IMAGE)

    def build(self, ctx: BuildContext) -> Job:
        """Read the picture and return the job that draws. Raises RecipeError for what is no picture."""
        from kolors_recipes.drawing import Source
        from kolors_recipes.from_picture import IMAGE_TO_IMAGE
        from kolors_recipes.given_pictures import read_picture
        from kolors_recipes.pictures_job import PicturesJob

        picture = read_picture(self.image, size=(self.height, self.width)).to(ctx.device)
        return PicturesJob(self, ctx, Source(IMAGE_TO_IMAGE, {"picture": picture, "strength": self.strength}))

    @classmethod
    def tiny(cls) -> Self:
        """Return one 16-pixel picture from a small one that ships."""
        return cls(**tiny.drawing(), prompts=["一只猫"], image=tiny.picture("picture.png"), strength=0.5)


class Inpaint(FromPicture):
    """Paint a part of a picture anew and leave the rest.

    The backbone may be an inpainting net, which is given the mask and the rest of the picture in five channels more,
    or an ordinary one: then what is left is kept on the picture's own way through the noise.
    """

    type: Literal["inpaint"] = "inpaint"
    mask: ExistingPath
    """A picture of the image's size, light where it is to be painted anew: over half of white. It is laid on black
    where it is transparent, and scaled and cut as the image is."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.999
    """How much of the steps is walked: below 1 what is painted anew begins with something of the picture."""
    paste_back: bool = True
    """Whether pixels that are not painted anew are the image's own in the end, bit for bit, and not decoded ones."""

    def latents_of_backbone(self) -> LatentSpec:
        """Return the shape of what the backbone is handed: latents, and an inpainting net more."""
        return self.latents_of_any_backbone()

    def graphs(self) -> Mapping[str, Graph]:
        """Return the graphs of the phases."""
        from kolors_recipes.drawing import phase_graphs
        from kolors_recipes.from_picture import inpainting

        return phase_graphs(inpainting(beside=self.latents_of_backbone().given > 0, paste_back=self.paste_back))

    def build(self, ctx: BuildContext) -> Job:
        """Read the picture and the mask and return the job. Raises RecipeError for what is none or does not fit."""
        from kolors_recipes.drawing import Source
        from kolors_recipes.from_picture import inpainting
        from kolors_recipes.given_pictures import read_mask, read_picture
        from kolors_recipes.pictures_job import PicturesJob

        beside, size = self.latents_of_backbone().given > 0, (self.height, self.width)
        given: dict[str, Any] = {
            "picture": read_picture(self.image, size=size).to(ctx.device),
            "mask": read_mask(self.mask, of=self.image, size=size).to(ctx.device),
            "strength": self.strength,
        }
        steps = inpainting(beside=beside, paste_back=self.paste_back)
        way = "given the mask and the rest of the picture" if beside else "the rest is kept on the picture's own way"
        return PicturesJob(self, ctx, Source(steps, given, {"inpainting": way}))

    @classmethod
    def tiny(cls) -> Self:
        """Return half of a small picture that ships, at 16 pixels."""
        files = {"image": tiny.picture("picture.png"), "mask": tiny.picture("mask.png")}
        return cls(**tiny.drawing(), **files, prompts=["一只猫"])


COMPONENTS = [TextToImage, ImageToImage, Inpaint]
