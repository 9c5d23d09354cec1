"""A small sentencepiece model of one's own, for an encoder that is trained from scratch."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from kolors_kernel.errors import DataError
from kolors_weights.writing import write_file

_BEFORE_TEXT = 3 + 256  # unk, bos and eos, and the bytes that any unknown character falls back to
_LONGEST_LINE = 1 << 16  # bytes; sentencepiece leaves longer ones out


def train_tokenizer(texts: Iterable[str], path: Path, *, pieces: int) -> None:
    """Write to `path` a byte-pair model of `pieces` pieces learnt from `texts`; the same texts give the same bytes.

    Made like the released one: unk and padding 0, bos 1, eos 2, 256 bytes for whatever is not learnt, digits apart, no
    normalisation. Raises ValueError when `pieces` leaves no room beside those, DataError when the texts hold too
    little for so many, RunError when it cannot be written.
    """
    if pieces <= _BEFORE_TEXT:
        raise ValueError(f"pieces is {pieces}, of which the bytes and control ids take {_BEFORE_TEXT}")
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    longest = max((len(line.encode("utf-8")) for line in lines), default=0)
    if not lines or longest > _LONGEST_LINE:
        raise DataError(f"a tokenizer is learnt from lines of 1 to {_LONGEST_LINE} bytes; the longest has {longest}")
    made = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=made,
            model_type="bpe",
            vocab_size=pieces,
            byte_fallback=True,
            character_coverage=0.9995,  # the rarest characters are spelt in bytes
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=_LONGEST_LINE,
            shuffle_input_sentence=False,
            num_threads=1,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,  # padding is the unk id, as in the released model
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"{len(lines)} lines of text do not make {pieces} pieces: {error}") from error
    write_file(path, lambda file: file.write_bytes(made.getvalue()))
