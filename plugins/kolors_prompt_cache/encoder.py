"""The text encoder that looks on the disk first."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from kolors_kernel.errors import RecipeError, RunError
from kolors_kernel.values import Conditioning
from kolors_prompt_cache.entries import Entries, Entry
from kolors_prompt_cache.identity import identity

if TYPE_CHECKING:
    from kolors_kernel.component import BuildContext
    from kolors_kernel.kinds import TextEncoderConfig
    from kolors_kernel.protocols import TextEncoder


class PromptCacheEncoder:
    """Gives what was kept of a prompt, and has another encoder, built when it is first needed, encode the rest.

    It has no weights to train, and its results have no gradients.
    """

    def __init__(self, config: TextEncoderConfig, ctx: BuildContext, *, entries: Entries) -> None:
        self._config, self._ctx, self._entries = config, ctx, entries
        self._seed = torch.initial_seed()
        self._identity = self._identify()
        self._encoder: TextEncoder | None = None
        self._frozen = False
        self._hits = self._misses = 0

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return tokens [B, L, D], pooled [B, P] and the key bias [B, L] or None; -inf where a prompt has no row.

        Rows that stand for nothing are not kept, so a prompt may have fewer than when it was encoded beside longer
        ones. A warning that was given when a prompt was encoded is given again. Raises RecipeError when there is no
        prompt, or one that is no text, and when the encoder gives more than a cache can keep.
        """
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise RecipeError(f"prompts should be a list of texts, not {prompts!r:.60}")
        found = {prompt: self._entries.find(self._key(prompt)) for prompt in prompts}
        missing = [prompt for prompt, entry in found.items() if entry is None]
        self._hits, self._misses = self._hits + len(found) - len(missing), self._misses + len(missing)
        if missing:
            found.update(self._make(missing))
        entries = {prompt: entry for prompt, entry in found.items() if entry is not None}
        for message in (message for entry in entries.values() for message in entry.said):
            warnings.warn(message, stacklevel=2)
        return _batch([entries[prompt] for prompt in prompts], device=self._ctx.device)

    def freeze(self) -> None:
        """Freeze the other encoder, now or when it is built, if it can be."""
        self._frozen = True
        if self._encoder is not None and hasattr(self._encoder, "freeze"):
            self._encoder.freeze()

    def report(self) -> Mapping[str, str]:
        """Return how many prompts were found and where, and what the other encoder reports if it was needed."""
        again = f", {self._entries.damaged} of them since their files were damaged" if self._entries.damaged else ""
        total = self._hits + self._misses
        said = f"found {self._hits} of {total} prompts in {self._entries.folder}, encoded {self._misses}{again}"
        if self._encoder is None:
            return {"prompt cache": f"{said}; the text encoder was not loaded"}
        return {"prompt cache": said, **getattr(self._encoder, "report", dict)()}

    def _make(self, prompts: Sequence[str]) -> dict[str, Entry]:
        """Encode prompts in one pass and keep them. Raises RunError when files changed since keys were made."""
        made = dict(zip(prompts, self._encode(prompts), strict=True))
        if self._identify() != self._identity:
            raise RunError(f"the files of text_encoder '{self._config.type}' have changed during this run: run again")
        for prompt, entry in made.items():
            self._entries.put(self._key(prompt), prompt, entry)
        self._entries.prune()
        return made

    def _encode(self, prompts: Sequence[str]) -> Iterable[Entry]:
        encoder = self._built()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", UserWarning)
            found = encoder.encode(list(prompts))
        said = tuple(str(each.message) for each in heard if issubclass(each.category, UserWarning))
        if said and len(prompts) > 1:  # each by itself shows whom the warning is about
            return [entry for prompt in prompts for entry in self._encode([prompt])]
        if found.extra:
            raise RecipeError(
                f"text_encoder '{self._config.type}' gives {', '.join(found.extra)} beside the text, which a prompt "
                "cache does not keep: use it without one"
            )
        return [_entry(found, row, said) for row in range(len(prompts))]

    def _built(self) -> TextEncoder:
        """Return the other encoder, built with the random numbers that it would have had when this one was."""
        if self._encoder is None:
            with torch.random.fork_rng():
                torch.manual_seed(self._seed)
                self._encoder = self._config.build(self._ctx)
            if self._frozen:
                self.freeze()
        return self._encoder

    def _identify(self) -> str:
        return identity(self._config, dtype=self._ctx.dtype, seed=self._seed)

    def _key(self, prompt: str) -> str:
        # Half a character is no valid text, but it is the encoder that says so.
        return hashlib.sha256(f"{self._identity} {prompt}".encode(errors="surrogatepass")).hexdigest()


def _entry(found: Conditioning, row: int, said: tuple[str, ...]) -> Entry:
    """Take one prompt out of its batch, without the rows that are not attended."""
    tokens, bias = found.tokens[row].cpu(), None if found.key_bias is None else found.key_bias[row].cpu()
    if bias is not None:
        attended = bias > -math.inf
        tokens, bias = tokens[attended], bias[attended]
    return Entry(tokens, found.pooled[row].cpu(), bias, said)


def _batch(entries: Sequence[Entry], *, device: str) -> Conditioning:
    """Bring entries to one number of rows: those that a shorter one lacks are not attended."""
    lengths = [len(entry.tokens) for entry in entries]
    rows = max(lengths)
    tokens = torch.stack([F.pad(entry.tokens, (0, 0, 0, rows - len(entry.tokens))) for entry in entries])
    bias: Tensor | None = None
    if min(lengths) < rows or any(entry.key_bias is not None for entry in entries):
        biases = [torch.zeros(len(e.tokens)) if e.key_bias is None else e.key_bias for e in entries]
        bias = torch.stack([F.pad(each, (0, rows - len(each)), value=-math.inf) for each in biases]).to(device)
    return Conditioning(tokens.to(device), torch.stack([entry.pooled for entry in entries]).to(device), bias)
