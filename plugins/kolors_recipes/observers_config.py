"""What the observers can say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from kolors_kernel.component import BuildContext
from kolors_kernel.errors import needs
from kolors_kernel.kinds import ObserverConfig

if TYPE_CHECKING:
    from kolors_kernel.protocols import Observer


class JSONL(ObserverConfig):
    """Append every note of the run to log.jsonl, one object a line."""

    type: Literal["jsonl"] = "jsonl"

    def build(self, ctx: BuildContext) -> Observer:
        """Make the observer; it writes out/log.jsonl."""
        from kolors_recipes.observers import JSONLObserver

        return JSONLObserver(ctx.out / "log.jsonl")


class ImageGrid(ObserverConfig):
    """Save the pictures drawn along the way as one PNG a time, below samples/."""

    type: Literal["image_grid"] = "image_grid"
    columns: PositiveInt = 4
    """Pictures in a row."""

    def build(self, ctx: BuildContext) -> Observer:
        """Make the observer; it writes out/samples/STEP.png."""
        from kolors_recipes.observers import ImageGridObserver

        return ImageGridObserver(ctx.out / "samples", columns=self.columns)


class TensorBoard(ObserverConfig):
    """Write scalars and pictures for TensorBoard, below tensorboard/."""

    type: Literal["tensorboard"] = "tensorboard"

    def build(self, ctx: BuildContext) -> Observer:
        """Make the observer; it writes event files below out/tensorboard."""
        with needs("tensorboard", extra="tensorboard", wanted_by=self.type):
            import tensorboard  # noqa: F401
        from kolors_recipes.observers import TensorBoardObserver

        return TensorBoardObserver(ctx.out / "tensorboard")


COMPONENTS = [JSONL, ImageGrid, TensorBoard]
