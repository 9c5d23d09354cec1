"""ChatGLM3 as a text encoder: prompts in, conditioning out (2.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kolors_chatglm3.architecture import Architecture
from kolors_chatglm3.model import ChatGLM3Model
from kolors_chatglm3.tokenizer import Tokenizer
from kolors_kernel.errors import WeightsError
from kolors_kernel.values import Conditioning
from kolors_weights.modules import fit, without_weights
from kolors_weights.places import Place
from kolors_weights.reading import find_weights, read_state
from kolors_weights.writing import write_file, write_state

_UNUSED = ("encoder.final_layernorm.", "output_layer.", "rotary_pos_emb.")


class ChatGLM3Encoder:
    """Encodes prompts as the hidden states of a ChatGLM. Raises WeightsError when the vocabulary is too small."""

    def __init__(self, module: ChatGLM3Model, tokenizer: Tokenizer) -> None:
        rows = module.embedding.word_embeddings.num_embeddings
        if rows < tokenizer.size:
            raise WeightsError(
                f"the tokenizer has {tokenizer.size} ids, but the model embeds {rows}: "
                "set padded_vocab_size higher, or name the tokenizer that belongs to these weights"
            )
        self.module = module
        self.tokenizer = tokenizer

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return tokens [B, L, D], what the last layer reads, and pooled [B, D], its output at the last token.

        Padding is attended by the backbone as in the released pipeline, so there is no key bias. Raises RecipeError
        for a prompt that is no text; warns with TruncationWarning when one is cut.
        """
        device = self.module.embedding.word_embeddings.weight.device
        slots = self.tokenizer(prompts)
        tokens, pooled = self.module(slots.ids.to(device), slots.positions.to(device), slots.real.to(device))
        return Conditioning(tokens=tokens, pooled=pooled)

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors and tokenizer.model into `folder`, made if absent.

        The setting `path` reads it back, and so do diffusers' ChatGLMModel and ChatGLMTokenizer. Raises RunError
        when it cannot be written.
        """
        write_file(folder / "tokenizer.model", lambda file: file.write_bytes(self.tokenizer.model))
        config = self.module.architecture.released_form()
        config["dtype"] = str(self.module.embedding.word_embeddings.weight.dtype).removeprefix("torch.")
        write_state(folder, self.module.state_dict(), config, stem="model")


def load_model(folder: Place, architecture: Architecture, *, device: str, dtype: str) -> ChatGLM3Model:
    """Return the model of `folder`: safetensors or pickles of plain tensors, in one file or in shards.

    Keys may carry the prefix `transformer.`; the head, the final norm and the rotation's buffer are passed over.
    Raises WeightsError when a file is damaged or the keys do not fit.
    """
    file = find_weights(folder, "model", "pytorch_model")
    with without_weights():
        module = ChatGLM3Model(architecture)
    state = {key.removeprefix("transformer."): tensor for key, tensor in read_state(file).items()}
    used = {
        key: tensor.to(device, getattr(torch, dtype)) for key, tensor in state.items() if not key.startswith(_UNUSED)
    }
    fit(module, used, where=file)
    return module


def random_model(architecture: Architecture, *, device: str, dtype: str) -> ChatGLM3Model:
    """Return a model to train from scratch: the same weights for the same architecture, always."""
    with without_weights():
        module = ChatGLM3Model(architecture)
    module.to_empty(device="cpu")
    module.initialise(torch.Generator().manual_seed(0))
    return module.to(device, getattr(torch, dtype))
