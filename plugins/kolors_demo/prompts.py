"""Which pictures of the set are asked for, and in which words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

from kolors_demo.captions import caption
from kolors_kernel.errors import RecipeError
from kolors_kernel.values import Language, PromptCase, SampleRecord

LANGUAGES: tuple[Language, ...] = ("en", "zh")


class EmojiPromptList:
    """Prompts for trained and held-out pictures, and a control: the trained ones' prompts with others' targets.

    What the control scores is what a model scores that ignores the prompt but draws pictures like the set's.
    """

    def __init__(self, records: Sequence[SampleRecord], *, per_part: int, seed: int) -> None:
        self.parts = {
            split: _chosen([each for each in records if each.tags["split"] == split], per_part, seed)
            for split in ("train", "held_out")
        }

    def cases(self) -> list[PromptCase]:
        """Return the cases of train, held_out and control, each picture in English and in Chinese.

        The target holds `concept` and `style`. Raises RecipeError when there are too few concepts for a control.
        """
        train, held_out = self.parts["train"], self.parts["held_out"]
        asked = [("train", each, each) for each in train]
        asked += [("held_out", each, each) for each in held_out]
        asked += [("control", each, other) for each, other in zip(train, _others(train), strict=True)]
        return [
            PromptCase(
                caption(shown.tags[f"name_{language}"], shown.tags["style"], language),
                language,
                part,
                {"concept": target.tags["concept"], "style": target.tags["style"]},
            )
            for part, shown, target in asked
            for language in LANGUAGES
        ]


def _chosen(records: Sequence[SampleRecord], count: int, seed: int) -> list[SampleRecord]:
    """Return `count` records, or all if fewer, in an order that is chance but the same everywhere and for ever."""
    return sorted(records, key=lambda record: sha256(f"{seed}/{record.id}".encode()).digest())[:count]


def _others(records: Sequence[SampleRecord]) -> list[SampleRecord]:
    """Return the records in another order, such that each place has a record of another concept than before.

    With equal concepts side by side, a shift by the size of the largest concept moves every record out of its own.
    """
    size = Counter(record.tags["concept"] for record in records)
    largest = max(size.values(), default=0)
    if 2 * largest > len(records):
        raise RecipeError(
            f"a control needs prompts of other concepts, but {largest} of {len(records)} trained pictures show the "
            "same one; choose more groups or a larger per_part"
        )
    rank = {concept: place for place, concept in enumerate(size)}
    places = sorted(range(len(records)), key=lambda place: rank[records[place].tags["concept"]])
    shifted = places[largest:] + places[:largest]
    other = dict(zip(places, shifted, strict=True))
    return [records[other[place]] for place in range(len(records))]
