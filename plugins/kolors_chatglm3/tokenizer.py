"""From text to the slots that ChatGLM3 reads: a fixed number of token ids, padded on the left (2.1.1)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from kolors_kernel.errors import RecipeError, WeightsError
from kolors_weights.places import Place
from kolors_weights.reading import find_file

SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
"""The tokens that follow the pieces of the sentencepiece model, in order of their ids."""
PREFIX = ("[gMASK]", "sop")
"""What every text begins with."""


class TruncationWarning(UserWarning):
    """A text was longer than the slots, and its end was cut off."""


@dataclass(frozen=True)
class Slots:
    """A batch of texts in L slots each: ids [B, L], positions [B, L], real [B, L] (false on padding)."""

    ids: Tensor
    positions: Tensor
    real: Tensor


class Tokenizer:
    """Splits text into the pieces of a sentencepiece model and lays them into `max_tokens` slots.

    The text of special tokens is not parsed: inside a prompt "[gMASK]" is seven characters like any others.
    Raises WeightsError, naming `source`, when `model` is not a serialized sentencepiece model.
    """

    def __init__(self, model: bytes, *, max_tokens: int, source: str) -> None:
        if max_tokens <= len(PREFIX):
            raise ValueError(f"max_tokens {max_tokens} leaves no room for text after {' '.join(PREFIX)}")
        self.model = model
        self.max_tokens = max_tokens
        self.pieces = _load(model, source)
        self.special = {name: self.pieces.get_piece_size() + index for index, name in enumerate(SPECIAL)}
        self.pad = self.pieces.unk_id()

    @property
    def size(self) -> int:
        """How many ids there are, special ones included."""
        return self.pieces.get_piece_size() + len(SPECIAL)

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each prompt, prefix included, at most `max_tokens` of them.

        The head of a longer text is kept, and a TruncationWarning tells what was cut. Raises RecipeError for a
        prompt that is no text.
        """
        texts = _texts(prompts)
        prefix = [self.special[name] for name in PREFIX]
        whole = [prefix + pieces for pieces in self.pieces.encode(texts)]
        self._say_what_is_cut(texts, [len(ids) for ids in whole])
        return [ids[: self.max_tokens] for ids in whole]

    def __call__(self, prompts: Sequence[str]) -> Slots:
        """Return the prompts in their slots, padded on the left; see `ids` for what happens to long ones."""
        rows = self.ids(prompts)
        empty = [self.max_tokens - len(ids) for ids in rows]
        ids = [[self.pad] * pads + row for pads, row in zip(empty, rows, strict=True)]
        slot = torch.arange(self.max_tokens) - torch.tensor(empty, dtype=torch.long).unsqueeze(1)  # [B, L]
        return Slots(
            ids=torch.tensor(ids, dtype=torch.long).view(len(rows), self.max_tokens),
            positions=slot.clamp(min=0),
            real=slot >= 0,
        )

    def _say_what_is_cut(self, texts: Sequence[str], lengths: Sequence[int]) -> None:
        cut = {index: length - self.max_tokens for index, length in enumerate(lengths) if length > self.max_tokens}
        if not cut:
            return
        first = next(iter(cut))
        others = f"; so do {len(cut) - 1} more of this batch" if len(cut) > 1 else ""
        warnings.warn(
            f"prompt {first} ({texts[first][:40]!r}…) has {lengths[first]} tokens, so its last {cut[first]} are cut"
            f"{others}: set max_tokens to {max(lengths)} to keep everything",
            TruncationWarning,
            stacklevel=4,
        )


def read_model(file: Path) -> bytes:
    """Return the bytes of a tokenizer.model. Raises WeightsError when it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise WeightsError(f"the tokenizer {file} cannot be read: {error}") from error


def find_model(folder: Place) -> Path:
    """Return the tokenizer.model of a text encoder's folder, in it or in the folder `tokenizer` beside it.

    Raises WeightsError when it is in neither.
    """
    file = find_file(folder, "tokenizer.model", "../tokenizer/tokenizer.model")
    if file is None:
        places = f"{folder / 'tokenizer.model'} nor at {folder.parent / 'tokenizer/tokenizer.model'}"
        raise WeightsError(f"there is no tokenizer at {places}; name one in the setting 'tokenizer'")
    return file


def _load(model: bytes, source: str) -> SentencePieceProcessor:
    pieces = SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise WeightsError(f"{source} is not a sentencepiece model: {error}") from error
    return pieces


def _texts(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str):
        raise RecipeError(f"prompts should be a list of texts, not the one text {prompts[:40]!r}")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise RecipeError(f"prompt {index} should be text, not {type(prompt).__name__}")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RecipeError(
                f"prompt {index} holds half a character, {prompt[error.start]!r} at {error.start}: it is no valid text"
            ) from error
    return list(prompts)
