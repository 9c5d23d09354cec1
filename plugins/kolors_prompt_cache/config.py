"""What a recipe can say about the prompt cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import ByteSize, Field, field_validator

from kolors_kernel import discover
from kolors_kernel.component import BuildContext, FilePath
from kolors_kernel.kinds import TextEncoderConfig
from kolors_kernel.values import ConditioningSpec

if TYPE_CHECKING:
    from kolors_prompt_cache.encoder import PromptCacheEncoder


class PromptCache(TextEncoderConfig):
    """Another text encoder whose results are kept on disk, a file for each prompt; it is loaded when one is missing."""

    type: Literal["cached"] = "cached"
    of: TextEncoderConfig
    """The text encoder. Results are found again for the same settings, dtype and contents of its files."""
    folder: Literal["user", "run"] | FilePath = Field(default="user", union_mode="left_to_right")
    """Where the results are kept: `user`, in the user's cache folder (kolors/prompts in $XDG_CACHE_HOME, else in
    ~/.cache); `run`, in the folder of the run; or a folder, which several processes and machines may share."""
    keep: ByteSize = ByteSize(4 * 2**30)
    """How many bytes the folder may take, as a number or as 500MB or 4GiB; what was not asked for longest goes first.
    A prompt of 30 tokens takes 254 kB in bfloat16."""

    @field_validator("of")
    @classmethod
    def _not_a_cache(cls, of: TextEncoderConfig) -> TextEncoderConfig:
        if isinstance(of, cls):
            raise ValueError("of is a prompt cache itself: name the text encoder that it is a cache of")
        return of

    @classmethod
    def tiny(cls) -> Self:
        """Return a cache of the tiny ChatGLM3 in the folder of the run."""
        return cls.model_validate({"of": discover().find("text_encoder", "chatglm3").tiny(), "folder": "run"})

    def spec(self) -> ConditioningSpec:
        """Return the shape of the other encoder's conditioning."""
        return self.of.spec()

    def build(self, ctx: BuildContext) -> PromptCacheEncoder:
        """Read what identifies the other encoder, and no weights. Raises WeightsError when a file cannot be read."""
        from kolors_prompt_cache.encoder import PromptCacheEncoder
        from kolors_prompt_cache.entries import Entries

        return PromptCacheEncoder(self.of, ctx, entries=Entries(self._folder(ctx), keep=self.keep))

    def _folder(self, ctx: BuildContext) -> Path:
        if isinstance(self.folder, Path):
            return self.folder
        if self.folder == "run":
            return ctx.out / "prompts"
        told = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # The XDG rules have a relative path ignored.
        return (told if told.is_absolute() else Path.home() / ".cache") / "kolors" / "prompts"
