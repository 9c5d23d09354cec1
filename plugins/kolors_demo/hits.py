"""Whether a generated picture shows what was asked for, told by the picture of the set that is nearest to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kolors_demo.gallery import Gallery
from kolors_kernel.values import PromptCase

SAME = 1e-5
"""Pictures are equally near when their mean squared differences differ by less: well under a step of 256, and over the
rounding here. Some drawings stand for several concepts, as Twemoji's families do, and each of these is then a hit."""
CHANCE = "chance"


@dataclass
class _Tally:
    concept: float = 0.0
    style: float = 0.0
    n: int = 0

    def add(self, concept: float, style: float) -> None:
        self.concept, self.style, self.n = self.concept + concept, self.style + style, self.n + 1

    def rates(self) -> dict[str, float | int]:
        return {"concept": self.concept / self.n, "style": self.style / self.n, "n": self.n}


class NearestPictureHits:
    """Concept and style hit rates by the nearest picture of the gallery, in squared difference of pixels."""

    def __init__(self, gallery: Gallery, *, device: str) -> None:
        self.pictures = gallery.pictures.to(device, torch.float32)  # [N, 3, H, W]
        self.concepts = [record.tags["concept"] for record in gallery.records]
        self.styles = [record.tags["style"] for record in gallery.records]
        self.share = {"concept": Counter(self.concepts), "style": Counter(self.styles)}
        self.tallies: dict[str, dict[str, _Tally]] = {}
        self.chance: dict[str, _Tally] = {}

    def update(self, images: Tensor, cases: Sequence[PromptCase]) -> None:
        """Take in generated pictures [B, 3, H, W] in [-1, 1], of any size, with their cases.

        A case's target names `concept` and `style`. A picture that is not finite is near to none, so it misses.
        Raises ValueError unless there is a case per picture, with a concept and a style of the gallery.
        """
        if len(images) != len(cases):
            raise ValueError(f"{len(images)} pictures came with {len(cases)} cases; each picture needs its own")
        for case in cases:
            self._require_known(case)
        for near, case in zip(self._nearest(images), cases, strict=True):
            hits = {
                "concept": any(self.concepts[i] == case.target["concept"] for i in near),
                "style": any(self.styles[i] == case.target["style"] for i in near),
            }
            tally = self.tallies.setdefault(case.part, {}).setdefault(case.language, _Tally())
            tally.add(hits["concept"], hits["style"])
            total = len(self.concepts)
            expected = {name: self.share[name][case.target[name]] / total for name in hits}
            self.chance.setdefault(case.language, _Tally()).add(expected["concept"], expected["style"])

    def compute(self) -> dict[str, dict[str, dict[str, float | int]]]:
        """Return part -> language -> rates `concept` and `style` in [0, 1] and the number of pictures `n`.

        The parts are those of the cases taken in, and "chance": what a random picture of the gallery would score.
        """
        parts = self.tallies | {CHANCE: self.chance} if self.chance else {}
        return {
            part: {language: tally.rates() for language, tally in of_part.items()} for part, of_part in parts.items()
        }

    def _nearest(self, images: Tensor) -> list[list[int]]:
        """Return for each picture the indices of the nearest in the gallery: several if equally near."""
        images = images.detach().to(self.pictures)
        # What is larger is made smaller, so that an upscaled picture is not compared in its blurred detail.
        size = tuple(min(sides) for sides in zip(images.shape[-2:], self.pictures.shape[-2:], strict=True))
        seen, known = _at_size(images, size).flatten(1), _at_size(self.pictures, size).flatten(1)
        squares = seen.square().sum(1, keepdim=True) + known.square().sum(1) - 2 * seen @ known.T  # [B, N]
        nearest = squares.amin(1, keepdim=True) + SAME * known.shape[1]
        return [row.nonzero().flatten().tolist() for row in squares <= nearest]

    def _require_known(self, case: PromptCase) -> None:
        for name, known in self.share.items():
            if case.target.get(name) not in known:
                raise ValueError(
                    f"the prompt '{case.prompt}' has the target {name} {case.target.get(name)!r}, which none of "
                    f"{len(self.concepts)} known pictures shows; give prompts and metric the same data and groups"
                )


def _at_size(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return images [B, 3, H, W] at `size` in pixels, themselves if they have it."""
    if tuple(images.shape[-2:]) == size:
        return images
    return interpolate(images, size=list(size), mode="bilinear", antialias=True)
