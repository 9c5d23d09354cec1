"""What a recipe can say about captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kolors_kernel.component import BuildContext
from kolors_kernel.kinds import CaptionerConfig, CaptionMixConfig

if TYPE_CHECKING:
    from kolors_captioners.mix import CaptionMixer
    from kolors_captioners.palette import PaletteCaptioner

Share = Annotated[float, Field(ge=0, le=1)]


class Mix(CaptionMixConfig):
    """Gives each sample original or synthetic, Chinese or English captions, by turns over the epochs (2.1.2)."""

    type: Literal["mix"] = "mix"
    synthetic: Share = 0.5
    """The share of epochs in which a sample has its synthetic caption; the paper mixes 50:50."""
    chinese: Share = 0.5
    """The share of epochs in which a sample has its Chinese caption, within either origin."""
    dropout: Share = 0.1
    """The share of epochs in which a sample has the empty caption, for classifier-free guidance."""

    def build(self, ctx: BuildContext) -> CaptionMixer:
        """Make the mix."""
        from kolors_captioners.mix import CaptionMixer

        return CaptionMixer(synthetic=self.synthetic, chinese=self.chinese, dropout=self.dropout)


class Palette(CaptionerConfig):
    """Says what can be measured in a picture: its background and its main colours with their shares."""

    type: Literal["palette"] = "palette"

    def build(self, ctx: BuildContext) -> PaletteCaptioner:
        """Make the captioner."""
        from kolors_captioners.palette import PaletteCaptioner

        return PaletteCaptioner()
