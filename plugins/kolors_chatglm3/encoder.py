"""ChatGLM3 as a text encoder: prompts in, conditioning out (2.1.1)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from kolors_chatglm3.model import ChatGLM3Model
from kolors_chatglm3.slots import Slots, merge_padding, reason_not_to_merge
from kolors_chatglm3.streaming import StreamedLayers
from kolors_chatglm3.tokenizer import Tokenizer
from kolors_kernel.errors import RunError, WeightsError
from kolors_kernel.values import Conditioning
from kolors_weights.packing import pack
from kolors_weights.precision import exact_onednn, without_onednn
from kolors_weights.quantizing import QuantizedLinear
from kolors_weights.writing import write_file, write_state

_AT_ONCE = 1024
"""Slots that go through the layers together: enough to make what a layer costs to read small beside computing it."""


class UnmergedPadding(UserWarning):
    """Padding was encoded slot by slot, though it was to be merged."""


class ChatGLM3Encoder:
    """Encodes prompts as the hidden states of a ChatGLM. Raises WeightsError when the vocabulary is too small."""

    def __init__(self, module: ChatGLM3Model, tokenizer: Tokenizer, *, merge: bool = True) -> None:
        rows = module.architecture.padded_vocab_size or 0
        if rows < tokenizer.size:
            raise WeightsError(
                f"the tokenizer has {tokenizer.size} ids, but the model embeds {rows}: "
                "set padded_vocab_size higher, or name the tokenizer that belongs to these weights"
            )
        self.module = module
        self.tokenizer = tokenizer
        self.merge = merge
        self._packed = False
        self._report = {"linear layers": f"not packed: {module.fixed or 'it was not frozen'}"}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return tokens [B, L, D], what the last layer reads, and pooled [B, D], its output at the last token.

        Padding is attended by the backbone as in the released pipeline: with `merge` as one row, the first, whose
        key bias is the log of how many slots it stands for. A prompt that comes several times is encoded once. Raises
        RecipeError for a prompt that is no text or is refused; warns with TruncationWarning when one is cut.
        """
        texts = [tuple(ids) for ids in self.tokenizer.ids(prompts)]
        each = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        slots = Slots.of(list(each), pad=self.tokenizer.pad, least=self.tokenizer.max_tokens)
        found = self.encode_slots(slots)
        if len(each) == len(texts):
            return found
        rows = torch.tensor([each[text] for text in texts], device=found.tokens.device)
        bias = None if found.key_bias is None else found.key_bias[rows]
        return Conditioning(found.tokens[rows], found.pooled[rows], bias)

    def encode_slots(self, slots: Slots) -> Conditioning:
        """Encode texts that are in their slots already; see `encode`.

        Warns with UnmergedPadding where padding should be merged and is not the same all over.
        """
        reason = reason_not_to_merge(slots) if self.merge else "merge_padding is off"
        self._report["padding"] = f"every slot is encoded: {reason}" if reason else "one row for all of a prompt's"
        if reason is None:
            slots = merge_padding(slots)
        elif self.merge:
            warnings.warn(self._report["padding"], UnmergedPadding, stacklevel=3)
        parts = [part.to(self.module.embedding.device) for part in slots.split(_AT_ONCE)]
        if not parts:
            nothing = torch.zeros(0, self.module.architecture.hidden_size)
            return Conditioning(nothing.unsqueeze(1), nothing)
        # Packed layers are oneDNN's already, and the attention that is left has few rows.
        with without_onednn() if self._packed else exact_onednn() as said:
            done = [self.module(part) for part in parts]
        if said and done[0][0].dtype == torch.float32:
            self._report["float32 products"] = said
        lengths = list(slots.lengths)
        hidden = torch.cat([hidden for hidden, _ in done]).split(lengths)  # type: ignore[no-untyped-call]
        tokens, pooled = pad_sequence(list(hidden), batch_first=True), torch.cat([pooled for _, pooled in done])
        bias = slots.count.log().float().split(lengths)  # type: ignore[no-untyped-call]
        key_bias = pad_sequence(list(bias), batch_first=True, padding_value=-math.inf)
        return Conditioning(tokens, pooled, key_bias.to(tokens.device) if key_bias.any() else None)

    def freeze(self) -> None:
        """Lay the weights out for speed; they can no longer be trained."""
        if self.module.fixed is None:
            self._report["linear layers"], self._packed = pack(self.module), True
            self.module.fix("it was frozen")

    def report(self) -> Mapping[str, str]:
        """Say which path ran and why not a faster one, by what it is about."""
        ops = dict(vars(self.module.ops))
        if not any(isinstance(layer, QuantizedLinear) for layer in self.module.modules()):
            del ops["quantized_linear"]
        return {**{kind: _told(op) for kind, op in ops.items()}, **self._report}

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors and tokenizer.model into `folder`, made if absent.

        The setting `path` reads it back, and so do diffusers' ChatGLMModel and ChatGLMTokenizer, unless it is
        quantised. Raises RunError when it cannot be written, or is not in memory.
        """
        if isinstance(self.module.encoder.layers, StreamedLayers):
            raise RunError(f"the text encoder cannot be saved to {folder}: {self.module.fixed}; copy that")
        write_file(folder / "tokenizer.model", lambda file: file.write_bytes(self.tokenizer.model))
        config = self.module.architecture.released_form()
        config["dtype"] = str(self.module.embedding.word_embeddings.weight.dtype).removeprefix("torch.")
        write_state(folder, self.module.state_dict(), config, stem="model")


def _told(op: object) -> str:
    """Say what an op says of itself where it chooses among several, else what it is."""
    return str(op.report()) if hasattr(op, "report") else type(op).__name__
