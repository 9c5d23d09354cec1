"""From text to the token ids that ChatGLM3 reads (2.1.1)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from sentencepiece import SentencePieceProcessor

from kolors_chatglm3.config import LONGEST
from kolors_kernel.errors import RecipeError, WeightsError
from kolors_weights.places import Place
from kolors_weights.reading import find_file

SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
"""The tokens that follow the pieces of the sentencepiece model, in order of their ids."""
PREFIX = ("[gMASK]", "sop")
"""What every text begins with."""
LongerPrompts: TypeAlias = Literal["cut", "extend", "refuse"]
"""What happens to a text of more tokens than there are slots."""


class TruncationWarning(UserWarning):
    """A text was longer than the slots, and its end was cut off."""


class Tokenizer:
    """Splits text into the pieces of a sentencepiece model, `max_tokens` of them unless `longer` says otherwise.

    The text of special tokens is not parsed: inside a prompt "[gMASK]" is seven characters like any others.
    Raises WeightsError, naming `source`, when `model` is not a serialized sentencepiece model.
    """

    def __init__(self, model: bytes, *, max_tokens: int, source: str, longer: LongerPrompts = "cut") -> None:
        if max_tokens <= len(PREFIX):
            raise ValueError(f"max_tokens {max_tokens} leaves no room for text after {' '.join(PREFIX)}")
        self.model = model
        self.max_tokens = max_tokens
        self.longer = longer
        self.pieces = _load(model, source)
        self.special = {name: self.pieces.get_piece_size() + index for index, name in enumerate(SPECIAL)}
        self.pad = self.pieces.unk_id()

    @property
    def size(self) -> int:
        """How many ids there are, special ones included."""
        return self.pieces.get_piece_size() + len(SPECIAL)

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each prompt, prefix included.

        Of a text longer than `max_tokens` the head is kept, and a TruncationWarning tells what was cut; or all of it
        is, or it is refused. Raises RecipeError for a prompt that is refused, and for one that is no text.
        """
        texts = _texts(prompts)
        prefix = [self.special[name] for name in PREFIX]
        whole = [prefix + pieces for pieces in self.pieces.encode(texts)]
        most = self._most(texts, [len(ids) for ids in whole])
        return [ids[:most] for ids in whole]

    def _most(self, texts: Sequence[str], lengths: Sequence[int]) -> int:
        """Return how many tokens of a text are kept, having said or refused what is lost."""
        most = LONGEST if self.longer == "extend" else self.max_tokens
        cut = [index for index, length in enumerate(lengths) if length > most]
        if cut:
            first, others = cut[0], f"; so do {len(cut) - 1} more of this batch" if len(cut) > 1 else ""
            said = f"prompt {first} ({texts[first][:40]!r}…) has {lengths[first]} tokens"
            if self.longer != "cut":
                raise RecipeError(f"{said}, and may have {most}{others}: shorten it, or set longer_prompts to cut")
            warnings.warn(
                f"{said}, so its last {lengths[first] - most} are cut{others}: set max_tokens to {max(lengths)} "
                "or longer_prompts to extend to keep everything",
                TruncationWarning,
                stacklevel=4,
            )
        return most


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
