"""What a recipe can say about ChatGLM3."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from kolors_chatglm3.architecture import RELEASED, Architecture
from kolors_kernel.component import BuildContext, ExistingPath
from kolors_kernel.kinds import QuantizedLinearConfig, RMSNormConfig, RotaryConfig, TextEncoderConfig
from kolors_kernel.values import ConditioningSpec
from kolors_weights.places import WeightsPath
from kolors_weights.reading import find_file

if TYPE_CHECKING:
    from kolors_chatglm3.encoder import ChatGLM3Encoder
    from kolors_chatglm3.model import ChatGLM3Model
    from kolors_chatglm3.tokenizer import Tokenizer

BITS: Mapping[str, Literal[4, 8]] = {"int8": 8, "int4": 4}
LONGEST = 32768
"""Tokens that a prompt may have at all: how far the positions reach that the weights were made for."""


class ChatGLM3(TextEncoderConfig):
    """ChatGLM3-6B-Base: the second-to-last hidden states of 256 slots, the last token of the last pooled (2.1.1)."""

    type: Literal["chatglm3"] = "chatglm3"
    path: WeightsPath | None = None
    """Folder with config.json and the weights, as released or as saved here, or one file of weights, quantised ones of
    8 or 4 bits among them; null: random weights."""
    tokenizer: ExistingPath | None = None
    """A sentencepiece tokenizer.model; null: the one in `path` or in the folder `tokenizer` beside it, and without
    `path` the 256 bytes, which serve for tests."""
    architecture: Architecture | None = None
    """The model's widths; null: those in config.json, and where there is none those of ChatGLM3-6B-Base."""
    max_tokens: Annotated[int, Field(ge=3)] = 256
    """Slots per prompt, two of which are the prefix; Kolors was trained with 256."""
    longer_prompts: Literal["cut", "extend", "refuse"] = "cut"
    """What becomes of a prompt of more tokens than slots: its end is cut off with a warning, or it gets as many slots
    as it needs, more than Kolors was trained with, or it is an error."""
    merge_padding: bool = True
    """Encode the padding of a prompt as one row that counts for all of it: the same result from n + 1 rows in place of
    `max_tokens`. Where the padding is not the same all over, all rows are encoded and a warning says why."""
    weights: Literal["resident", "streamed"] = "resident"
    """Hold all layers in memory, or one at a time, read from the files of `path` for each batch: then it takes a
    sixteenth of the memory, does not train, and encodes as fast as the files can be read."""
    quantize: Literal["int8", "int4"] | None = None
    """Keep the weights of the linear layers as integers of 8 bits with a scale per row, or of 4 with one per 64
    columns; null: as they are in the files. They take a half or a quarter of bfloat16; they are not exact nor train."""

    rms_norm: RMSNormConfig = Field(default={"type": "auto"}, validate_default=True)
    """How hidden states are normalised."""
    rotary: RotaryConfig = Field(default={"type": "auto"}, validate_default=True)
    """How queries and keys are turned by their positions."""
    quantized_linear: QuantizedLinearConfig = Field(default={"type": "auto"}, validate_default=True)
    """How linear layers are computed whose weights are of 8 or 4 bits."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.architecture is not None and isinstance(self.path, Path) and find_file(self.path, "config.json"):
            raise ValueError(f"architecture is read from {self.path}/config.json: leave one of the two out")
        if self.weights == "streamed" and self.path is None:
            raise ValueError("weights are streamed from files: name them in path")
        if self.weights == "streamed" and self.quantize is not None:
            raise ValueError("quantize is for resident weights: streamed ones would be quantised anew for each batch")
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
        most = LONGEST if self.longer_prompts == "extend" else self.max_tokens
        return ConditioningSpec(tokens=most, width=width, pooled=width)

    def build(self, ctx: BuildContext) -> ChatGLM3Encoder:
        """Make the encoder. Raises WeightsError when the files are damaged or do not fit each other."""
        from kolors_chatglm3.encoder import ChatGLM3Encoder

        tokenizer = self._tokenizer()
        widths = self._widths()
        if widths.padded_vocab_size is None:
            widths = widths.model_copy(update={"padded_vocab_size": tokenizer.size})
        return ChatGLM3Encoder(self._module(widths, ctx), tokenizer, merge=self.merge_padding)

    def _module(self, widths: Architecture, ctx: BuildContext) -> ChatGLM3Model:
        from kolors_chatglm3.loading import load_model, random_model, streamed_model
        from kolors_chatglm3.model import Ops

        ops = Ops(self.rms_norm.build(ctx), self.rotary.build(ctx), self.quantized_linear.build(ctx))
        bits = None if self.quantize is None else BITS[self.quantize]
        if self.path is None:
            return random_model(widths, ops, device=ctx.device, dtype=ctx.dtype, quantize=bits)
        if self.weights == "streamed":
            return streamed_model(self.path, widths, ops, device=ctx.device, dtype=ctx.dtype)
        return load_model(self.path, widths, ops, device=ctx.device, dtype=ctx.dtype, quantize=bits)

    def _widths(self) -> Architecture:
        if self.path is None or (self.path.suffix and not find_file(self.path, "config.json")):
            return self.architecture or RELEASED
        return Architecture.read(self.path)

    def _tokenizer(self) -> Tokenizer:
        from kolors_chatglm3.byte_pieces import byte_pieces
        from kolors_chatglm3.tokenizer import Tokenizer, find_model, read_model

        file = self.tokenizer
        if file is None and self.path is not None:
            file = find_model(self.path)
        model = byte_pieces() if file is None else read_model(file)
        source = "the 256 bytes" if file is None else str(file)
        return Tokenizer(model, max_tokens=self.max_tokens, source=source, longer=self.longer_prompts)
