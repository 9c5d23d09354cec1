"""Hypothesis strategies for what passes between components: schedules, records, prompts, recipe trees."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from kolors_kernel.values import SampleRecord

AWKWARD_PROMPTS = (
    "",
    "   ",
    "一只戴墨镜的柴犬，赛博朋克风格",
    "a shiba wearing sunglasses",
    "一只 shiba 戴着 sunglasses 在看 New York 的夜景",
    "🐶🕶️👩🏽‍🚀🇨🇳",
    "tab\tnewline\nbell\x07null\x00delete\x7f",
    "[gMASK] sop <|endoftext|> </s> <unk> <pad> [CLS]",
    "龘" * 300,
    "word " * 2000,
)
"""Prompts that have broken text encoders: none of them may break ours."""

_WORDS_ZH = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), min_size=1, max_size=6)
_WORDS_EN = st.text(st.characters(min_codepoint=0x61, max_codepoint=0x7A), min_size=1, max_size=8)
_EMOJI = st.sampled_from(["🐶", "🕶️", "👩🏽‍🚀", "🇨🇳", "🏳️‍🌈"])
_CONTROL = st.sampled_from(["\x00", "\x07", "\x1b", "\t", "\n", "\r", "\x7f", "\u200b", "\ufeff", "\u202e"])
_SPECIAL = st.sampled_from(["[gMASK]", "sop", "<|endoftext|>", "</s>", "<unk>", "<pad>", "[MASK]", "<0x0A>"])


def chinese(max_words: int = 6) -> st.SearchStrategy[str]:
    """Chinese text, at least one character."""
    return st.lists(_WORDS_ZH, min_size=1, max_size=max_words).map("，".join)


def english(max_words: int = 8) -> st.SearchStrategy[str]:
    """Lower-case words of Latin letters, at least one."""
    return st.lists(_WORDS_EN, min_size=1, max_size=max_words).map(" ".join)


def prompts() -> st.SearchStrategy[str]:
    """Any prompt a user may type: Chinese, English, both, emoji, control characters, special-token text, nothing."""
    pieces = st.one_of(_WORDS_ZH, _WORDS_EN, _EMOJI, _CONTROL, _SPECIAL)
    mixed = st.lists(pieces, max_size=12).map(" ".join)
    return st.one_of(chinese(), english(), mixed, st.sampled_from(AWKWARD_PROMPTS))


def sample_records(min_captions: int = 0) -> st.SearchStrategy[SampleRecord]:
    """Records with any subset of the four captions, some of them empty, of any size, with tags."""
    captions = st.fixed_dictionaries(
        {},
        optional={
            "zh_original": st.one_of(chinese(), st.just("")),
            "en_original": st.one_of(english(), st.just("")),
            "zh_synthetic": chinese(),
            "en_synthetic": english(),
        },
    ).filter(lambda found: sum(bool(text) for text in found.values()) >= min_captions)
    side = st.integers(1, 4096)
    tags = st.dictionaries(_WORDS_EN, st.one_of(english(2), st.integers(0, 5).map(str)), max_size=4)
    return st.builds(SampleRecord, id=_WORDS_EN, size=st.tuples(side, side), captions=captions, tags=tags)


@st.composite
def alpha_bars(draw: st.DrawFn, max_steps: int = 60, zero_terminal: bool = False) -> Tensor:
    """Signal powers [T] in float64, strictly decreasing inside (0, 1); the last is 0 with `zero_terminal`."""
    steps = draw(st.integers(4, max_steps))
    start, end = draw(st.floats(0.9, 0.9999)), draw(st.floats(1e-4, 0.2))
    power = draw(st.floats(0.5, 2.0))
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64) ** power
    found = start + (end - start) * ramp
    if zero_terminal:
        found[-1] = 0.0
    return found


@st.composite
def betas(draw: st.DrawFn, max_steps: int = 60) -> Tensor:
    """Variances of one step each [T] in float64, non-decreasing inside (0, 1)."""
    found = draw(st.lists(st.floats(1e-5, 0.3), min_size=4, max_size=max_steps))
    return torch.tensor(sorted(found), dtype=torch.float64)


_KEYS = st.sampled_from(["text_encoder", "backbone", "stages", "path", "steps", "width", "name", "风格"])
_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-1, 1), english(2), chinese(2))


def recipe_trees() -> st.SearchStrategy[dict[str, Any]]:
    """What a recipe file may hold: nested mappings, some with a `type`, with lists and plain values as leaves."""

    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(_mapping(inner), st.lists(inner, max_size=3))

    return _mapping(st.recursive(_LEAVES, deeper, max_leaves=8))


def _mapping(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    types = st.dictionaries(st.just("type"), st.sampled_from(["hash", "zeros", "clip"]), max_size=1)
    return st.builds(lambda kind, rest: {**kind, **rest}, types, st.dictionaries(_KEYS, inner, max_size=4))
