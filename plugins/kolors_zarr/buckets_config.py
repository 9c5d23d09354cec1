"""What a recipe can say about buckets: the kind `buckets` and its components (2.2.2)."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from kolors_kernel.component import BuildContext, ComponentConfig
from kolors_kernel.kinds import Builds
from kolors_zarr.buckets.rule import bounded_sizes
from kolors_zarr.buckets.tables import SDXL

if TYPE_CHECKING:
    from kolors_zarr.buckets.assign import Bucketing

Sizes = tuple[tuple[int, int], ...]


class BucketsConfig(ComponentConfig, Builds["Bucketing"], kind="buckets"):
    """The sizes that pictures are trained at, and which pictures have no place among them (2.2.2)."""

    min_side: PositiveInt = 1
    """Pictures with a side below this are refused, in pixels."""
    max_loss: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The largest share of a picture that the crop to its bucket may cut away; it is refused if it is more."""
    no_upscale: bool = False
    """Whether a picture that is smaller than its bucket keeps its own size, cut down to multiples of `step`. It is
    refused if a side then is shorter than that of any bucket. Otherwise it is enlarged."""
    step: PositiveInt = 64
    """What the sides are multiples of, where they are computed, in pixels."""

    @abstractmethod
    def sizes(self) -> Sizes:
        """Return the height and width of each bucket in pixels, sorted, each once."""

    def possible_sizes(self) -> Sizes:
        """Return the buckets, and with `no_upscale` every size that a smaller picture may keep; sorted."""
        sizes = set(self.sizes())
        if self.no_upscale:
            area = max(height * width for height, width in sizes)
            least = -(-min(map(min, sizes)) // self.step) * self.step
            heights = range(least, area // least + 1, self.step)
            sizes |= {(height, width) for height in heights for width in range(least, area // height + 1, self.step)}
        return tuple(sorted(sizes))

    def build(self, ctx: BuildContext) -> Bucketing:
        """Make what puts pictures into these buckets."""
        from kolors_zarr.buckets.assign import Bucketing

        return Bucketing(
            self.sizes(),
            min_side=self.min_side,
            max_loss=self.max_loss,
            no_upscale=self.no_upscale,
            step=self.step,
        )


class SquareBuckets(BucketsConfig):
    """One square for every picture: the stage of low resolution (2.2.1)."""

    type: Literal["square"] = "square"
    side: PositiveInt = 512
    """The side of the square, in pixels."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a square of 8 pixels."""
        return cls(side=8)

    def sizes(self) -> Sizes:
        """Return the square."""
        return ((self.side, self.side),)


class NovelAIBuckets(BucketsConfig):
    """Sizes of many aspects and at most one area, by the rule that NovelAI published (2.2.2).

    As it is: 19 sizes of up to 512 x 768. An area of 1048576 with sides from 512 to 2048 has 33.
    """

    type: Literal["novelai"] = "novelai"
    area: PositiveInt = 512 * 768
    """The most pixels of a size."""
    shortest_side: PositiveInt = 256
    """The shortest side, in pixels."""
    longest_side: PositiveInt = 1024
    """The longest side, in pixels."""
    base: PositiveInt = 512
    """The side of the square that is added where the rule yields none, in pixels."""

    @model_validator(mode="after")
    def _has_sizes(self) -> Self:
        for name in ("shortest_side", "base"):
            side = getattr(self, name)
            if side % self.step:
                raise ValueError(f"{name} {side} must be a multiple of step {self.step}")
            if side * side > self.area:
                raise ValueError(f"a square of {name} {side} must fit the area of {self.area}")
        if not self.shortest_side <= self.base <= self.longest_side:
            raise ValueError(f"base {self.base} must lie between {self.shortest_side} and {self.longest_side}")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Return three sizes of at most 8 x 12 pixels."""
        return cls(area=96, shortest_side=8, longest_side=16, base=8, step=4)

    def sizes(self) -> Sizes:
        """Return the sizes that the rule yields, mirrored ones included."""
        return bounded_sizes(
            area=self.area,
            shortest_side=self.shortest_side,
            longest_side=self.longest_side,
            step=self.step,
            base=self.base,
        )


class SDXLBuckets(BucketsConfig):
    """The 40 sizes of about a megapixel that SDXL was trained at."""

    type: Literal["sdxl"] = "sdxl"

    def sizes(self) -> Sizes:
        """Return the published table."""
        return SDXL


class OwnBuckets(BucketsConfig):
    """Sizes of your own."""

    type: Literal["sizes"] = "sizes"
    table: Annotated[list[tuple[PositiveInt, PositiveInt]], Field(min_length=1)]
    """The height and width of each bucket in pixels. No two have the same aspect: the larger would stay empty."""

    @model_validator(mode="after")
    def _aspects_differ(self) -> Self:
        aspects = Counter(Fraction(height, width) for height, width in self.table)
        twice = [f"{height} x {width}" for height, width in self.table if aspects[Fraction(height, width)] > 1]
        if twice:
            raise ValueError(f"{', '.join(twice)} repeat an aspect; pictures of one aspect all go to one bucket")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Return a square of 8 pixels, and a portrait and a landscape."""
        return cls(table=[(8, 8), (12, 8), (8, 12)])

    def sizes(self) -> Sizes:
        """Return the table, sorted."""
        return tuple(sorted(self.table))


COMPONENTS = [SquareBuckets, NovelAIBuckets, SDXLBuckets, OwnBuckets]
