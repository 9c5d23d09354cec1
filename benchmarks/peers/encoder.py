"""The text encoder: a prompt and the empty negative one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from benchmarks.peers.contest import EAGER, EXACT, Contest, difference, gflop, in_turns
from benchmarks.peers.text import SLOTS, spread

if TYPE_CHECKING:
    from torch import Tensor

    from kolors_kernel.values import Conditioning

    Encode = Callable[[], tuple[Tensor, Tensor]]  # rows of both prompts, negative first, and their pooled vectors

SMALL = {
    "num_layers": 8,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "multi_query_group_num": 2,
    "kv_channels": 64,
    "ffn_hidden_size": 1712,
}
PREFIX = 2
"""Tokens before the text; with the 256 bytes as vocabulary, each letter is one more."""


@contextmanager
def contest(size: str, dtype: str, tokens: int, *, compiled: bool) -> Iterator[Contest]:
    """Encode a prompt of `tokens` tokens and the empty one: diffusers' pipeline in two calls, ours in one."""
    import torch

    from kolors_kernel import BuildContext, discover

    prompt = ("The quick brown fox; " * 9)[: tokens - PREFIX]
    kind = cast(Any, discover().find("text_encoder", "chatglm3"))
    with TemporaryDirectory() as folder, torch.no_grad():
        made = kind.tiny() if size == "tiny" else kind.model_validate({"architecture": SMALL})
        made.build(BuildContext()).save(Path(folder))
        ours = kind.model_validate({"path": folder}).build(BuildContext(dtype=dtype))
        mine = partial(_ours, ours, prompt)
        ours_gflop = gflop(mine)
        ours.freeze()
        eager = _peer(folder, dtype, prompt)
        functions: dict[str, Callable[[], object]] = {"ours": mine, EAGER: eager}
        if dtype == "float32":
            functions[f"{EAGER}, oneDNN"] = _by_onednn(eager)
        if compiled:
            functions[f"{EAGER}, compiled"] = _peer(folder, dtype, prompt, compiled=True)
        exactly = eager() if dtype == "float32" else _peer(folder, "float32", prompt)()
        theirs = _distance(eager(), exactly)
        yield Contest(
            ours_name="chatglm3",
            run=in_turns(functions),
            error=lambda: _distance(_all_rows(mine()), eager()),
            limit=EXACT if dtype == "float32" else 3 * theirs,
            gflop=(ours_gflop, gflop(eager)),
            dtype=dtype,
            figures={"error_float32": _distance(_all_rows(mine()), exactly), "peer_error_float32": theirs},
        )


def _ours(encoder: Any, prompt: str) -> Conditioning:
    from kolors_weights.precision import exact_onednn

    with exact_onednn():
        found: Conditioning = encoder.encode(["", prompt])
    return found


def _all_rows(found: Conditioning) -> tuple[Tensor, Tensor]:
    return spread(found.tokens, found.key_bias), found.pooled


def _peer(folder: str, dtype: str, prompt: str, *, compiled: bool = False) -> Encode:
    import diffusers
    import torch
    import transformers

    # They report that the unused head is not in the file, and every file's progress.
    said: Any = transformers.utils.logging
    said.set_verbosity_error()
    said.disable_progress_bar()
    parts: Any = diffusers.pipelines.kolors
    model = parts.ChatGLMModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    pipeline = parts.KolorsPipeline(
        vae=None,
        text_encoder=torch.compile(model) if compiled else model,
        tokenizer=parts.ChatGLMTokenizer(vocab_file=str(Path(folder, "tokenizer.model"))),
        unet=None,
        scheduler=None,
    )

    def encode() -> tuple[Tensor, Tensor]:
        rows, negative, pooled, negative_pooled = pipeline.encode_prompt(
            prompt, device=torch.device("cpu"), max_sequence_length=SLOTS
        )
        return torch.cat([negative, rows]), torch.cat([negative_pooled, pooled])

    return encode


def _by_onednn(function: Encode) -> Encode:
    from kolors_weights.precision import exact_onednn

    def call() -> tuple[Tensor, Tensor]:
        with exact_onednn():
            return function()

    return call


def _distance(found: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> float:
    return max(difference(one, other) for one, other in zip(found, right, strict=True))
