"""Padding as one row that counts for all of it is exact: for every number of tokens, alone and in any company.

Compared in float64 with all 256 slots, which the tests of the text encoder hold to diffusers.
"""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kolors_chatglm3.architecture import Architecture
from kolors_chatglm3.config import ChatGLM3
from kolors_chatglm3.encoder import ChatGLM3Encoder
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.values import Conditioning

SLOTS, PREFIX = 256, 2
CLOSE = 1e-12  # relative to the largest value
WIDTHS = Architecture(
    num_layers=3,
    hidden_size=24,
    num_attention_heads=4,
    multi_query_group_num=2,
    kv_channels=8,
    ffn_hidden_size=40,
)


@cache
def encoder(merge: bool) -> ChatGLM3Encoder:
    made = ChatGLM3(architecture=WIDTHS, merge_padding=merge).build(BuildContext(dtype="float64"))
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in made.module.parameters():  # larger, so that who attends to whom shows in the result
            weight.add_(torch.randn(weight.shape, generator=draw, dtype=torch.float64), alpha=0.3)
    return made


def encode(lengths: list[int], *, merge: bool) -> Conditioning:
    prompts = [chr(97 + index % 26) + "the quick brown fox " * 13 for index in range(len(lengths))]
    cut = [prompt[: length - PREFIX] for prompt, length in zip(prompts, lengths, strict=True)]
    with torch.no_grad():
        return encoder(merge).encode(cut)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= CLOSE * wanted.abs().max()


def assert_same(lengths: list[int]) -> None:
    merged, whole = encode(lengths, merge=True), encode(lengths, merge=False)
    assert whole.tokens.shape == (len(lengths), SLOTS, 24)
    assert whole.key_bias is None
    assert_close(merged.pooled, whole.pooled)
    for row, length in enumerate(lengths):
        pads, first = SLOTS - length, int(length < SLOTS)
        padding, text = merged.tokens[row, :first], merged.tokens[row, first : first + length]
        assert_close(torch.cat((padding.expand(pads, -1), text)), whole.tokens[row])
        if merged.key_bias is not None:
            counts = merged.key_bias[row].exp()
            assert counts[:first].round().tolist() == [pads] * first
            assert counts.sum().round() == SLOTS


Lengths = st.lists(st.integers(PREFIX, SLOTS), min_size=1, max_size=5)


@given(Lengths)
@settings(max_examples=25, deadline=None)
@example([2])
@example([255])
@example([256])
@example([256, 2, 255, 2])
def test_one_row_of_padding_gives_what_256_slots_give(lengths: list[int]) -> None:
    assert_same(lengths)


def test_it_does_so_for_every_number_of_tokens() -> None:
    everything = list(range(PREFIX, SLOTS + 1))
    for start in range(0, len(everything), 64):
        assert_same(everything[start : start + 64])


@given(Lengths, st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_attending_to_the_merged_rows_is_attending_to_all_256(lengths: list[int], seed: int) -> None:
    """The key bias is float32, so that its weight is off by up to 2^-24 of the log of a count."""
    draw = torch.Generator().manual_seed(seed)
    q, to_k, to_v = (torch.randn(*size, generator=draw, dtype=torch.float64) for size in ((7, 8), (24, 8), (24, 8)))
    merged, whole = encode(lengths, merge=True), encode(lengths, merge=False)

    def attend(text: Conditioning, bias: Tensor) -> Tensor:
        scores = q @ (text.tokens @ to_k).mT / 8**0.5 + bias.unsqueeze(1)
        return scores.softmax(-1) @ (text.tokens @ to_v)

    zero = torch.zeros(1, 1, dtype=torch.float64)
    found = attend(merged, zero if merged.key_bias is None else merged.key_bias.double())
    wanted = attend(whole, zero)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
