"""ChatGLM3 up to the hidden states that Kolors reads; its state-dict keys are those of the released files."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kolors_chatglm3.architecture import Architecture


class ChatGLM3Model(nn.Module):
    """The layers of a ChatGLM, without the final norm and the language model's head, which Kolors never uses.

    Raises ValueError when the architecture leaves the size of the vocabulary open.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        if architecture.padded_vocab_size is None:
            raise ValueError("padded_vocab_size must be a number by the time the model is made")
        self.architecture = architecture
        self.embedding = Embedding(architecture.padded_vocab_size, architecture.hidden_size)
        self.encoder = Encoder(architecture)
        self.rotations = Rotations(architecture.kv_channels // 2)

    def forward(self, ids: Tensor, positions: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """ids, positions and real [B, L] -> tokens [B, L, D], pooled [B, D].

        Tokens are what the last layer reads, pooled is what it gives at the last slot; neither is normalised.
        """
        hidden = self.embedding.word_embeddings(ids)
        rotation = self.rotations(positions, hidden.dtype)
        mask = attention_mask(real, hidden.dtype)
        *layers, final = self.encoder.layers
        for layer in layers:
            hidden = layer(hidden, rotation, mask, last=hidden.shape[1])
        return hidden, final(hidden, rotation, mask, last=1).squeeze(1)

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


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(architecture) for _ in range(architecture.num_layers))


class Layer(nn.Module):
    """Attention and a gated feed-forward part, each on the normalised stream and added to it."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, eps = architecture.hidden_size, architecture.layernorm_epsilon
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.self_attention = GroupedAttention(architecture)
        self.post_attention_layernorm = nn.RMSNorm(width, eps)
        self.mlp = SwiGLU(width, architecture.ffn_hidden_size)

    def forward(self, hidden: Tensor, rotation: Tensor, mask: Tensor, *, last: int) -> Tensor:
        """hidden [B, L, D] -> the new hidden states of its `last` slots [B, last, D]."""
        attended = self.self_attention(self.input_layernorm(hidden), rotation, mask, last=last)
        hidden = hidden[:, -last:] + attended
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class GroupedAttention(nn.Module):
    """Attention whose query heads share a few heads of keys and values; queries, keys and values have a bias."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.heads = architecture.num_attention_heads
        self.groups = architecture.multi_query_group_num
        self.head_width = architecture.kv_channels
        inner = self.heads * self.head_width
        self.query_key_value = nn.Linear(architecture.hidden_size, inner + 2 * self.groups * self.head_width)
        self.dense = nn.Linear(inner, architecture.hidden_size, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor, *, last: int) -> Tensor:
        """Attend from the `last` slots to all: x [B, L, D], mask [B, 1, L, L] -> [B, last, D]."""
        rows = self.query_key_value(x).unflatten(
            -1, (self.heads + 2 * self.groups, self.head_width)
        )  # [B, L, heads + 2 groups, E]
        turned = rotate(rows[:, :, : -self.groups], rotation)
        mixed = F.scaled_dot_product_attention(
            turned[:, -last:, : self.heads].transpose(1, 2),
            turned[:, :, self.heads :].transpose(1, 2),
            rows[:, :, -self.groups :].transpose(1, 2),
            mask[:, :, -last:],
            enable_gqa=True,
        )
        out: Tensor = self.dense(mixed.transpose(1, 2).flatten(2))
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


class Rotations(nn.Module):
    """The rotation of each position as complex numbers; computed once per number of positions, never saved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self._table: Tensor | None = None
        self._made_for: tuple[int, torch.dtype, torch.device] | None = None

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """positions [B, L] below L -> [B, L, 1, width / 2], complex."""
        key = (positions.shape[1], dtype, positions.device)
        if self._table is None or self._made_for != key:
            self._table, self._made_for = rotation_table(key[0], self.width, dtype, key[2]), key
        return self._table[positions].unsqueeze(2)


def rotation_table(length: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return cos + i sin of position * 10000^(-2j / width), [length, width / 2] complex.

    The angles are computed in float64 for a model in float64 and in float32 for all others; for half precision the
    table is rounded to `dtype`, as it was when the released weights were trained.
    """
    exact = torch.promote_types(dtype, torch.float32)
    frequencies = 1.0 / 10000 ** (torch.arange(0, width, 2, dtype=exact, device=device) / width)
    angles = torch.outer(torch.arange(length, dtype=exact, device=device), frequencies)
    return torch.complex(angles.cos().to(dtype).to(exact), angles.sin().to(dtype).to(exact))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs in the first half of each head of x [B, L, A, E] by rotation [B, L, 1, E / 4]."""
    turned, kept = x.chunk(2, dim=-1)
    pairs = torch.view_as_complex(turned.to(rotation.real.dtype).view(*turned.shape[:-1], rotation.shape[-1], 2))
    return torch.cat((torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype), kept), dim=-1)


def attention_mask(real: Tensor, dtype: torch.dtype) -> Tensor:
    """real [B, L] -> what is added to the scores, [B, 1, L, L]: 0 where a slot is seen and -inf where not.

    A real token sees the real tokens up to itself, never padding. A padding slot sees everything, padding and later
    tokens included: that is how the weights were released, and the backbone reads those slots too.
    """
    causal = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=real.device).tril()
    seen = (causal & real.unsqueeze(1)) | ~real.unsqueeze(2)  # [B, query, key]
    return torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill(~seen, -math.inf).unsqueeze(1)
