"""Choosing among the captions of a sample, by turns rather than by coin (2.1.2)."""

from __future__ import annotations

from hashlib import blake2b
from math import floor

from kolors_kernel.values import NO_CAPTION, SampleRecord


class CaptionMixer:
    """Gives each sample its captions in turn, so that every share is kept by each sample over the epochs.

    A share p is met at epoch e when floor((e + 1) p + u) exceeds floor(e p + u), with u in [0, 1) hashed from seed
    and sample: half the epochs means every other one, and over the samples each epoch has p in expectation. First it
    is decided whether the caption is dropped; among the other epochs, whether it is synthetic; among those of one
    origin, whether it is Chinese. Each turn counts only the epochs it decides on: were all to count the same epochs,
    a sample would meet synthetic Chinese and original English, say, and never the other two.

    An origin that a sample lacks leaves its turns to the other, and so does a language within an origin; a sample
    without captions has the empty one always.
    """

    def __init__(self, *, synthetic: float, chinese: float, dropout: float) -> None:
        self.synthetic, self.chinese, self.dropout = synthetic, chinese, dropout

    def choose(self, record: SampleRecord, *, seed: int, epoch: int) -> str:
        """Return the key of the caption to train with, or NO_CAPTION: a pure function of the arguments."""
        there = {key for key, text in record.captions.items() if text}
        dropped, _, count = _turn(self.dropout, epoch, _phase(seed, record.id, "dropout"))
        if dropped:
            return NO_CAPTION
        origins = [o for o in ("synthetic", "original") if there & {f"zh_{o}", f"en_{o}"}]
        if not origins:
            return NO_CAPTION
        origin = origins[0]
        if len(origins) == 2:
            is_synthetic, before, others = _turn(self.synthetic, count, _phase(seed, record.id, "origin"))
            origin, count = ("synthetic", before) if is_synthetic else ("original", others)
        languages = [language for language in ("zh", "en") if f"{language}_{origin}" in there]
        language = languages[0]
        if len(languages) == 2:
            is_chinese, _, _ = _turn(self.chinese, count, _phase(seed, record.id, origin))
            language = "zh" if is_chinese else "en"
        return f"{language}_{origin}"


def _turn(share: float, time: int, phase: float) -> tuple[bool, int, int]:
    """Return whether it is the turn of a share at a time, and how often it was and was not before."""
    before = floor(time * share + phase)
    return floor((time + 1) * share + phase) > before, before, time - before


def _phase(seed: int, id: str, what: str) -> float:
    digest = blake2b(f"{seed} {what} {id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53  # 53 bits: below 1 as a float too
