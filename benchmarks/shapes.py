"""The shapes a forward of the SDXL U-Net gives to its ops, counted by walking its levels, and those of ChatGLM3 (2)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

GROUPS = 32


@dataclass(frozen=True)
class UNetShape:
    """A U-Net and what it is fed: channels and transformer blocks per level, side of the latents, a batch for guidance.

    As in SDXL: two resnets per level going down, two in the middle, three going up; a transformer after each of
    them but one in the middle, where the level has any.
    """

    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    head_width: int
    side: int
    text_tokens: int
    batch: int = 2

    def attention(self) -> Counter[tuple[int, int, int, int, int]]:
        """Return (B, A, N, L, E) of every attention and how often it is called: self and cross."""
        found: Counter[tuple[int, int, int, int, int]] = Counter()
        for width, tokens, times in self._transformer_blocks():
            for keys in (tokens, self.text_tokens):
                found[self.batch, width // self.head_width, tokens, keys, self.head_width] += times
        return found

    def geglu(self) -> Counter[tuple[int, int, int]]:
        """Return (B, N, 2F) of every GEGLU's input and how often it is called; F is four times the width."""
        found: Counter[tuple[int, int, int]] = Counter()
        for width, tokens, times in self._transformer_blocks():
            found[self.batch, tokens, 8 * width] += times
        return found

    def add_layer_norm(self) -> Counter[tuple[int, int, int]]:
        """Return (B, N, C) of every layer norm to whose rows others are added and how often it is called."""
        found: Counter[tuple[int, int, int]] = Counter()
        for width, tokens, times in self._transformer_blocks():
            found[self.batch, tokens, width] += 2 * times
        return found

    def group_norm_silu(self) -> Counter[tuple[int, int, int, int]]:
        """Return (B, C, h, w) of every group norm that a SiLU follows and how often it is called.

        They are two in each resnet and one before the last convolution.
        """
        found: Counter[tuple[int, int, int, int]] = Counter()
        last = len(self.channels) - 1

        def resnet(into: int, out: int, level: int) -> None:
            for width in (into, out):
                found[self.batch, width, self.side >> level, self.side >> level] += 1

        now = self.channels[0]
        skips = [now]
        for level, width in enumerate(self.channels):
            for _ in range(2):
                resnet(now, width, level)
                now = width
                skips.append(now)
            if level < last:
                skips.append(now)  # the downsampler's output
        for _ in range(2):
            resnet(now, now, last)
        for level, width in reversed(list(enumerate(self.channels))):
            for _ in range(3):
                resnet(now + skips.pop(), width, level)
                now = width
        found[self.batch, now, self.side, self.side] += 1
        return found

    def _transformer_blocks(self) -> list[tuple[int, int, int]]:
        """Return (width, tokens, blocks in a forward) of each level that has transformers."""
        last = len(self.channels) - 1
        return [
            (width, (self.side >> level) ** 2, depth * (6 if level == last else 5))
            for level, (width, depth) in enumerate(zip(self.channels, self.blocks, strict=True))
            if depth
        ]


@dataclass(frozen=True)
class TextShape:
    """A ChatGLM and what it is fed: rows of all texts, the heads that are turned, their width, and its layers.

    `inner` is the width between the two linear layers of a feed-forward, of which the first makes a gate too.
    """

    rows: int
    heads: int
    head_width: int
    width: int
    inner: int
    layers: int

    def rms_norm(self) -> Counter[tuple[int, int]]:
        """Return (R, D) of every RMS norm and how often it is called."""
        return Counter({(self.rows, self.width): 2 * self.layers})

    def rotary(self) -> Counter[tuple[int, int, int]]:
        """Return (R, A, E) of every rotation and how often it is called."""
        return Counter({(self.rows, self.heads, self.head_width): self.layers})

    def linear(self) -> Counter[tuple[int, int, int, bool]]:
        """Return (R, I, O) of every linear layer, whether it has a bias, and how often it is called.

        The heads that are turned are those of the queries and of the keys; there are as many of values as of keys.
        """
        keys = self.heads - self.width // self.head_width
        return Counter(
            {
                (self.rows, self.width, (self.heads + keys) * self.head_width, True): self.layers,
                (self.rows, self.width, self.width, False): self.layers,
                (self.rows, self.width, 2 * self.inner, False): self.layers,
                (self.rows, self.inner, self.width, False): self.layers,
            }
        )


def _kolors(side: int) -> UNetShape:
    return UNetShape((320, 640, 1280), (0, 2, 10), head_width=64, side=side, text_tokens=256)


UNETS = {
    "tiny": UNetShape((32, 64, 96), (0, 1, 1), head_width=16, side=8, text_tokens=13),
    "small": UNetShape((64, 128, 256), (1, 2, 4), head_width=64, side=32, text_tokens=256),
    "kolors_512": _kolors(64),
    "kolors_1024": _kolors(128),
}
"""What a bench can be asked for: Kolors' own at two picture sizes, and smaller ones of the same build."""

_CHATGLM3 = TextShape(rows=128, heads=34, head_width=128, width=4096, inner=13696, layers=28)
TEXTS = {
    "tiny": TextShape(rows=9, heads=3, head_width=16, width=32, inner=96, layers=2),
    "small": TextShape(rows=128, heads=10, head_width=64, width=512, inner=1728, layers=8),
    "kolors_512": _CHATGLM3,
    "kolors_1024": _CHATGLM3,
}
"""The text encoder beside each of them, with a prompt of a good hundred tokens and the empty one."""
