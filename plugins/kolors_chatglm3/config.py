"""What a recipe can say about ChatGLM3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from kolors_chatglm3.architecture import RELEASED, Architecture
from kolors_kernel.component import BuildContext, ExistingPath
from kolors_kernel.kinds import TextEncoderConfig
from kolors_kernel.values import ConditioningSpec
from kolors_weights.places import WeightsPath

if TYPE_CHECKING:
    from kolors_chatglm3.encoder import ChatGLM3Encoder
    from kolors_chatglm3.tokenizer import Tokenizer


class ChatGLM3(TextEncoderConfig):
    """ChatGLM3-6B-Base: the second-to-last hidden states of 256 slots, the last token of the last pooled (2.1.1)."""

    type: Literal["chatglm3"] = "chatglm3"
    path: WeightsPath | None = None
    """Folder with config.json and the weights, as released or as saved here; null: random weights."""
    tokenizer: ExistingPath | None = None
    """A sentencepiece tokenizer.model; null: the one in `path` or in the folder `tokenizer` beside it, and without
    `path` the 256 bytes, which serve for tests."""
    architecture: Architecture | None = None
    """The model's widths; null: those in `path`, and without `path` those of ChatGLM3-6B-Base."""
    max_tokens: Annotated[int, Field(ge=3)] = 256
    """Slots per prompt, two of which are the prefix. Longer text is cut with a warning; Kolors was trained with 256,
    and the encoder itself reads more."""

    @model_validator(mode="after")
    def _one_source_of_widths(self) -> Self:
        if self.path is not None and self.architecture is not None:
            raise ValueError(f"architecture is read from {self.path}/config.json: leave one of the two out")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Return two narrow layers with random weights over the 256 bytes, in 32 slots."""
        widths = Architecture(
            num_layers=2,
            hidden_size=32,
            num_attention_heads=2,
            multi_query_group_num=1,
            kv_channels=16,
            ffn_hidden_size=64,
        )
        return cls(architecture=widths, max_tokens=32)

    def spec(self) -> ConditioningSpec:
        """Return the shape of the conditioning. Raises WeightsError when config.json cannot be used."""
        width = self._widths().hidden_size
        return ConditioningSpec(tokens=self.max_tokens, width=width, pooled=width)

    def build(self, ctx: BuildContext) -> ChatGLM3Encoder:
        """Make the encoder. Raises WeightsError when the files are damaged or do not fit each other."""
        from kolors_chatglm3.encoder import ChatGLM3Encoder, load_model, random_model

        tokenizer = self._tokenizer()
        widths = self._widths()
        if widths.padded_vocab_size is None:
            widths = widths.model_copy(update={"padded_vocab_size": tokenizer.size})
        if self.path is None:
            module = random_model(widths, device=ctx.device, dtype=ctx.dtype)
        else:
            module = load_model(self.path, widths, device=ctx.device, dtype=ctx.dtype)
        return ChatGLM3Encoder(module, tokenizer)

    def _widths(self) -> Architecture:
        if self.path is not None:
            return Architecture.read(self.path)
        return self.architecture or RELEASED

    def _tokenizer(self) -> Tokenizer:
        from kolors_chatglm3.byte_pieces import byte_pieces
        from kolors_chatglm3.tokenizer import Tokenizer, find_model, read_model

        file = self.tokenizer
        if file is None and self.path is not None:
            file = find_model(self.path)
        if file is None:
            return Tokenizer(byte_pieces(), max_tokens=self.max_tokens, source="the 256 bytes")
        return Tokenizer(read_model(file), max_tokens=self.max_tokens, source=str(file))
