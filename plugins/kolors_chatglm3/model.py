"""ChatGLM3 up to the hidden states that Kolors reads; its state-dict keys are those of the released files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kolors_chatglm3.architecture import Architecture
from kolors_chatglm3.attending import EVERY_SLOT, Asked, Block, attention_blocks, rotation, the_last_of
from kolors_chatglm3.slots import Slots
from kolors_kernel.errors import RecipeError
from kolors_weights import quantizing

if TYPE_CHECKING:
    from kolors_kernel.protocols import RMSNorm, Rotary


@dataclass(frozen=True)
class Ops:
    """The operations that have several implementations."""

    rms_norm: RMSNorm
    rotary: Rotary
    quantized_linear: quantizing.Op = quantizing.quantized_linear
    """Of the layers whose weights are integers, where there are any."""


class ChatGLM3Model(nn.Module):
    """The layers of a ChatGLM, without the final norm and the language model's head, which Kolors never uses.

    Raises ValueError when the architecture leaves the size of the vocabulary open.
    """

    def __init__(self, architecture: Architecture, ops: Ops) -> None:
        super().__init__()
        if architecture.padded_vocab_size is None:
            raise ValueError("padded_vocab_size must be a number by the time the model is made")
        self.architecture, self.ops = architecture, ops
        self.embedding = Embedding(architecture.padded_vocab_size, architecture.hidden_size)
        self.encoder = Encoder(architecture, ops)
        self.fixed: str | None = None

    def fix(self, reason: str) -> None:
        """Have the weights no longer trained, for a reason that `fixed` gives from now on."""
        self.fixed = reason
        self.requires_grad_(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Choose whether the weights are trained. Raises RecipeError when they are to be and are fixed."""
        if requires_grad and self.fixed:
            raise RecipeError(f"this text encoder cannot be trained: {self.fixed}")
        return super().requires_grad_(requires_grad)

    def forward(self, slots: Slots) -> tuple[Tensor, Tensor]:
        """R slots of B texts -> tokens [R, D], pooled [B, D].

        Tokens are what the last layer reads, pooled is what it gives at the last slot of each text; neither is
        normalised.
        """
        hidden: Tensor = self.embedding(slots.ids)
        turns = rotation(slots.positions, self.architecture.kv_channels, hidden.dtype)
        blocks, final = attention_blocks(slots, hidden.dtype), len(self.encoder.layers) - 1
        for index, layer in enumerate(self.encoder.layers):
            if index < final:
                hidden = layer(hidden, turns, blocks, EVERY_SLOT)
        return hidden, layer(hidden, turns, *the_last_of(slots, blocks))

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:
        """Draw weights to start a training from: of a size that makes hidden states about 1 at any width.

        Nothing normalises what the backbone reads, so embeddings are unit normal. Maps are normal with 1/sqrt(inputs),
        those that add to the stream smaller by 1/sqrt(2 * layers), so that depth does not grow it; biases are 0.
        """
        shared = 1 / math.sqrt(2 * self.architecture.num_layers)
        for name, weight in self.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif name.endswith("bias"):
                weight.zero_()
            elif name.endswith("embeddings.weight"):
                weight.normal_(generator=generator)
            else:
                into_stream = name.endswith(("self_attention.dense.weight", "mlp.dense_4h_to_h.weight"))
                scale = (shared if into_stream else 1.0) / math.sqrt(weight.shape[1])
                weight.normal_(0.0, scale, generator=generator)


class Embedding(nn.Module):
    """The table of word embeddings."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.word_embeddings.weight.device

    def forward(self, ids: Tensor) -> Tensor:
        """ids [R] -> [R, D]."""
        found: Tensor = self.word_embeddings(ids)
        return found


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, architecture: Architecture, ops: Ops) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(architecture, ops) for _ in range(architecture.num_layers))


class Layer(nn.Module):
    """Attention and a gated feed-forward part, each on the normalised stream and added to it."""

    def __init__(self, architecture: Architecture, ops: Ops) -> None:
        super().__init__()
        width, eps = architecture.hidden_size, architecture.layernorm_epsilon
        self.op, self.eps = ops.rms_norm, eps
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.self_attention = GroupedAttention(architecture, ops.rotary)
        self.post_attention_layernorm = nn.RMSNorm(width, eps)
        self.mlp = SwiGLU(width, architecture.ffn_hidden_size)

    def forward(self, hidden: Tensor, turns: Tensor, blocks: list[Block], asked: Asked) -> Tensor:
        """hidden [R, D] -> the new hidden states of the slots asked for [Q, D]."""
        attended = self.self_attention(self._normal(self.input_layernorm, hidden), turns, blocks, asked)
        hidden = hidden[asked] + attended
        out: Tensor = hidden + self.mlp(self._normal(self.post_attention_layernorm, hidden))
        return out

    def _normal(self, norm: nn.RMSNorm, hidden: Tensor) -> Tensor:
        return self.op(hidden, norm.weight, self.eps)


class GroupedAttention(nn.Module):
    """Attention whose query heads share a few heads of keys and values; queries, keys and values have a bias."""

    def __init__(self, architecture: Architecture, rotary: Rotary) -> None:
        super().__init__()
        self.op = rotary
        self.heads = architecture.num_attention_heads
        self.groups = architecture.multi_query_group_num
        self.head_width = architecture.kv_channels
        inner = self.heads * self.head_width
        self.query_key_value = nn.Linear(architecture.hidden_size, inner + 2 * self.groups * self.head_width)
        self.dense = nn.Linear(inner, architecture.hidden_size, bias=False)

    def forward(self, x: Tensor, turns: Tensor, blocks: list[Block], asked: Asked) -> Tensor:
        """Attend from the slots asked for to the slots of their text: x [R, D] -> [Q, D]."""
        heads = self.query_key_value(x).unflatten(-1, (-1, self.head_width))  # [R, heads + 2 groups, E]
        turned, v = self.op(heads[:, : -self.groups], turns), heads[:, -self.groups :]
        q, k = turned[asked, : self.heads], turned[:, self.heads :]
        mixed = torch.cat([block.attend(q, k, v) for block in blocks])
        out: Tensor = self.dense(mixed)
        return out


class SwiGLU(nn.Module):
    """A feed-forward part gated by the SiLU of the first half of its first linear map."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(width, 2 * inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gate, value = self.dense_h_to_4h(x).chunk(2, dim=-1)
        out: Tensor = self.dense_4h_to_h(F.silu(gate) * value)
        return out
