"""Choosing among the captions of a sample, by turns rather than by coin (2.1.2)."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from math import floor

from kolors_kernel.values import NO_CAPTION, SampleRecord

_FOUR = struct.Struct("<4Q")


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
        (key,) = self.choose_all([record.id], [_there(record.captions)], seed=seed, epoch=epoch)
        return key

    def choose_all(self, ids: Sequence[str], there: Sequence[Collection[str]], *, seed: int, epoch: int) -> list[str]:
        """Return what `choose` would for samples of these ids, which have these captions and no empty ones."""
        seeded, digests = blake2b(f"{seed} ".encode(), digest_size=32, person=b"caption mix"), list[bytes]()
        for id in ids:
            hashed = seeded.copy()
            hashed.update(id.encode())
            digests.append(hashed.digest())
        return [self._choose(*each, epoch) for each in zip(digests, there, strict=True)]

    def _choose(self, digest: bytes, there: Collection[str], epoch: int) -> str:
        dropout, origin, synthetic, original = _FOUR.unpack(digest)
        is_dropped, _, count = _turn(self.dropout, epoch, dropout)
        if is_dropped:
            return NO_CAPTION
        has_synthetic = "zh_synthetic" in there or "en_synthetic" in there
        has_original = "zh_original" in there or "en_original" in there
        if not has_synthetic and not has_original:
            return NO_CAPTION
        is_synthetic = has_synthetic
        if has_synthetic and has_original:
            is_synthetic, before, others = _turn(self.synthetic, count, origin)
            count = before if is_synthetic else others
        chinese, english = ("zh_synthetic", "en_synthetic") if is_synthetic else ("zh_original", "en_original")
        if chinese in there and english in there:
            is_chinese, _, _ = _turn(self.chinese, count, synthetic if is_synthetic else original)
            return chinese if is_chinese else english
        return chinese if chinese in there else english


def _there(captions: Mapping[str, str]) -> Collection[str]:
    """Return the keys of the captions that are not empty.

    A store's mapping tells by `there`, without reading a text.
    """
    told: Collection[str] | None = getattr(captions, "there", None)
    return {key for key, text in captions.items() if text} if told is None else told


def _turn(share: float, time: int, phase: int) -> tuple[bool, int, int]:
    """Return whether it is the turn of a share at a time, and how often it was and was not before.

    The phase is in units of 2^-64.
    """
    start = (phase >> 11) * 2**-53  # 53 bits: below 1 as a float too
    before = floor(time * share + start)
    return floor((time + 1) * share + start) > before, before, time - before
