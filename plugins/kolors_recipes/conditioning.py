"""Conditionings taken apart by prompt and put together again, in any order and number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kolors_kernel.values import Conditioning


def by_prompt(conditioning: Conditioning) -> list[Conditioning]:
    """Return each prompt's own conditioning, a batch of one, without the rows that are never attended."""
    return [_row(conditioning, index) for index in range(len(conditioning.pooled))]


def _row(conditioning: Conditioning, index: int) -> Conditioning:
    at, bias = slice(index, index + 1), conditioning.key_bias
    attended = slice(None) if bias is None else bias[index] > float("-inf")
    return replace(
        conditioning,
        tokens=conditioning.tokens[at][:, attended],
        pooled=conditioning.pooled[at],
        key_bias=None if bias is None else bias[at][:, attended],
        extra={name: value[at] for name, value in conditioning.extra.items()},
    )


def together(prompts: Sequence[Conditioning]) -> Conditioning:
    """Return one batch of conditionings; the shorter ones end in rows of key bias -inf, which are never attended."""
    longest = max(each.tokens.shape[1] for each in prompts)
    biased = any(each.key_bias is not None or each.tokens.shape[1] < longest for each in prompts)
    return Conditioning(
        tokens=torch.cat([F.pad(each.tokens, (0, 0, 0, longest - each.tokens.shape[1])) for each in prompts]),
        pooled=torch.cat([each.pooled for each in prompts]),
        key_bias=torch.cat([_bias(each, longest) for each in prompts]) if biased else None,
        extra={name: torch.cat([each.extra[name] for each in prompts]) for name in prompts[0].extra},
    )


def _bias(conditioning: Conditioning, length: int) -> Tensor:
    tokens, bias = conditioning.tokens, conditioning.key_bias
    if bias is None:
        bias = torch.zeros(tokens.shape[:2], device=tokens.device)
    return F.pad(bias, (0, length - tokens.shape[1]), value=float("-inf"))
