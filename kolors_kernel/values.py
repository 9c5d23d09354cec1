"""Values that pass between components. Frozen, and without torch at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Generator, Tensor

    # The names of graph ports: a step's annotation says which of these it reads or writes.
    Images: TypeAlias = Tensor  # [B, 3, H, W] in [-1, 1]
    Latents: TypeAlias = Tensor  # [B, C, h, w], scaled
    Noise: TypeAlias = Tensor  # [B, C, h, w], unit Gaussian
    Timesteps: TypeAlias = Tensor  # [B], indices of a noise schedule
    Prediction: TypeAlias = Tensor  # [B, C, h, w], what the backbone predicts
    Sizes: TypeAlias = Tensor  # [B, 6], original (h, w), crop (top, left), target (h, w), pixels
    Weights: TypeAlias = Tensor  # [B], how much a sample counts in the loss
    Loss: TypeAlias = Tensor  # scalar
    Random: TypeAlias = Generator

Captions: TypeAlias = Sequence[str]
Language: TypeAlias = Literal["zh", "en"]
NO_CAPTION = "empty"
"""The key of the empty caption, which every sample has: what a dropped caption is replaced by."""


@dataclass(frozen=True)
class ConditioningSpec:
    """The shape of a text encoder's output: at most `tokens` rows of `width`, and a pooled vector of `pooled`."""

    tokens: int
    width: int
    pooled: int


@dataclass(frozen=True)
class LatentSpec:
    """The shape of latents: `channels` at 1/`downscale` of the picture's side; in inpainting a backbone reads `given`
    channels more, which it does not predict."""

    channels: int
    downscale: int
    given: int = 0


@dataclass(frozen=True)
class Conditioning:
    """What the text says, for the backbone.

    tokens [B, L, D]; pooled [B, P]; key_bias [B, L] or None: added to the attention scores of each row, the log
    of how many equal rows one stands for (-inf: padding that is not attended). `extra` holds what adapters read.
    """

    tokens: Tensor
    pooled: Tensor
    key_bias: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class SampleRecord:
    """Everything known about one picture of a data set but its pixels.

    `captions` maps "zh_original", "en_original", "zh_synthetic", "en_synthetic" to text, in any number of them; a
    missing or empty one does not exist. `size` is the original (height, width) in pixels. `tags` holds what the
    data set says beyond that (category, style, split, licence ...).
    """

    id: str
    size: tuple[int, int]
    captions: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Sample:
    """One sample as a store keeps it: its record, and what there is of the picture and of its text.

    image: an encoded picture (PNG, JPEG, WebP); pixels uint8 [3, H, W]; latents [C, h, w]; conditioning by caption
    key, `NO_CAPTION` among them, each with a batch of one. size: how the picture behind pixels or latents was cut, a
    row of `Batch.size` in whole pixels; None for the whole picture at its original size.
    """

    record: SampleRecord
    image: bytes | None = None
    pixels: Tensor | None = None
    latents: Tensor | None = None
    conditioning: Mapping[str, Conditioning] = field(default_factory=lambda: MappingProxyType({}))
    size: tuple[int, int, int, int, int, int] | None = None


@dataclass(frozen=True)
class Part:
    """A piece of a data set that one worker does in one go, under a name fit for a file: `rows` are the source's
    numbers of its samples; `size` is the height and width their pictures are brought to."""

    name: str
    size: tuple[int, int]
    rows: Sequence[int]


@dataclass(frozen=True)
class Batch:
    """One training batch of a data source; what the source does not supply is None.

    size [B, 6]: original height and width, crop top and left, target height and width, in pixels (the
    micro-conditioning). images uint8 [B, 3, H, W], as they come cheapest to a device; latents [B, C, h, w], in the
    dtype they are stored in; weight [B], 0 for padding copies.
    """

    records: Sequence[SampleRecord]
    size: Tensor
    weight: Tensor
    images: Tensor | None = None
    latents: Tensor | None = None
    captions: Captions | None = None
    conditioning: Conditioning | None = None


@dataclass(frozen=True)
class PromptCase:
    """One prompt of an evaluation: which `part` of the report it counts in, and what the picture should show."""

    prompt: str
    language: Language
    part: str
    target: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, for observers.

    `name` is "start", "train_step", "samples", "checkpoint" or "stage_end"; `step` counts optimiser steps over all
    stages. images [N, 3, H, W] in [-1, 1] come with "samples", and `prompts` say what they were drawn from.
    """

    name: Literal["start", "train_step", "samples", "checkpoint", "stage_end"]
    stage: str
    step: int
    scalars: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    images: Tensor | None = None
    prompts: Sequence[str] = ()
