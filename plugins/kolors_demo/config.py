"""What a recipe can say about judging pictures of the demo's set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PositiveInt

from kolors_kernel.component import BuildContext
from kolors_kernel.kinds import DataSourceConfig, MetricConfig, PromptSetConfig

if TYPE_CHECKING:
    from kolors_demo.hits import NearestPictureHits
    from kolors_demo.prompts import EmojiPromptList

STORE = Path(__file__).parent / "data" / "emoji.zarr"
"""The store of pictures that comes with the package."""


def _embedded() -> Any:
    return {"type": "zarr", "path": STORE}


class EmojiPrompts(PromptSetConfig):
    """Asks for pictures of the demo's set by name and style, in English and Chinese, beside a shuffled control."""

    type: Literal["emoji_prompts"] = "emoji_prompts"
    data: DataSourceConfig = Field(default_factory=_embedded)
    """The pictures, with the tags of the demo's store; its captions are not used."""
    groups: list[str] | None = None
    """The groups of concepts that are asked for, as animals-nature and food-drink; null: all."""
    per_part: PositiveInt = 64
    """How many pictures each part asks for, in both languages: of the trained ones, and of the held-out ones, or all
    of these if they are fewer."""
    seed: int = 0
    """Which pictures are chosen. A smaller `per_part` chooses some of the same."""

    @classmethod
    def tiny(cls) -> Self:
        """Return four pictures of the embedded store for each part."""
        return cls(data=_embedded() | {"buckets": {"side": 8}}, per_part=4)

    def build(self, ctx: BuildContext) -> EmojiPromptList:
        """Read the records and choose. Raises RecipeError for an unknown group, DataError for data without its tags."""
        from kolors_demo.gallery import read_records
        from kolors_demo.prompts import EmojiPromptList

        return EmojiPromptList(read_records(self.data.build(ctx), self.groups), per_part=self.per_part, seed=self.seed)


class EmojiHits(MetricConfig):
    """Tells how often the set's picture nearest to a generated one has the concept, and the style, asked for."""

    type: Literal["emoji_hits"] = "emoji_hits"
    data: DataSourceConfig = Field(default_factory=_embedded)
    """The pictures compared with, trained and held-out ones; pictures are compared at this resolution or less."""
    groups: list[str] | None = None
    """The groups of concepts compared with, the same as the prompts'; null: all."""

    @classmethod
    def tiny(cls) -> Self:
        """Return the metric on the embedded store at 8 pixels."""
        return cls(data=_embedded() | {"buckets": {"side": 8}})

    def build(self, ctx: BuildContext) -> NearestPictureHits:
        """Read the pictures. Raises RecipeError for an unknown group, DataError for data without its tags."""
        from kolors_demo.gallery import read_gallery
        from kolors_demo.hits import NearestPictureHits

        return NearestPictureHits(read_gallery(self.data.build(ctx), self.groups), device=ctx.device)
