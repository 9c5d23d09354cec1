"""What a recipe can say about curation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field

from kolors_kernel.component import BuildContext
from kolors_kernel.kinds import SampleFilterConfig

if TYPE_CHECKING:
    from kolors_curation.levels import LevelFilter
    from kolors_curation.tags import TagFilter

Values = Annotated[list[str], Field(min_length=1)]


class Tags(SampleFilterConfig):
    """Keeps samples by the tags of their records: category, style, split, licence (2.2.1)."""

    type: Literal["tags"] = "tags"
    where: dict[str, Values] = Field(default_factory=dict)
    """For each tag the values that are kept; a sample without the tag is dropped."""
    without: dict[str, Values] = Field(default_factory=dict)
    """For each tag the values that are dropped; a sample without the tag is kept."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a filter for one split."""
        return cls(where={"split": ["train"]})

    def build(self, ctx: BuildContext) -> TagFilter:
        """Make the filter."""
        from kolors_curation.tags import TagFilter

        return TagFilter(where=self.where, without=self.without)


class Level(SampleFilterConfig):
    """Keeps samples by how good they were found to be, from the tag `level` (2.2.1)."""

    type: Literal["level"] = "level"
    at_least: Annotated[int, Field(ge=1, le=5)] = 5
    """The lowest of the levels 1 to 5 that is kept; a sample without a level is dropped."""

    def build(self, ctx: BuildContext) -> LevelFilter:
        """Make the filter."""
        from kolors_curation.levels import LevelFilter

        return LevelFilter(at_least=self.at_least)
