"""The widths of a ChatGLM, under the names that the released config.json gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import PositiveFloat, PositiveInt, ValidationError, model_validator

from kolors_kernel.component import Settings
from kolors_kernel.errors import WeightsError
from kolors_weights.places import Place
from kolors_weights.reading import read_config

_ONLY: Mapping[str, tuple[object, ...]] = {
    "rmsnorm": (True,),
    "add_qkv_bias": (True,),
    "multi_query_attention": (True,),
    "add_bias_linear": (False, None),
    "apply_residual_connection_post_layernorm": (False, None),
    "fp32_residual_connection": (False, None),
    "quantization_bit": (0, None),
    "pre_seq_len": (0, None),
    "rope_ratio": (1, None),
}
"""What this code computes, of all that the file format can say; None stands for a key that is absent."""


class Architecture(Settings):
    """The widths of a ChatGLM: every layer has the same."""

    num_layers: PositiveInt
    """Layers; the last one is run for the pooled vector alone."""
    hidden_size: PositiveInt
    """Width of the hidden states and so of the conditioning."""
    num_attention_heads: PositiveInt
    """Query heads."""
    multi_query_group_num: PositiveInt
    """Key and value heads, each shared by an equal number of query heads."""
    kv_channels: PositiveInt
    """Width of one head; a multiple of 4, since half of it is rotated in pairs."""
    ffn_hidden_size: PositiveInt
    """Width inside the feed-forward part, after the gate."""
    padded_vocab_size: PositiveInt | None = None
    """Rows of the embedding table; null: as many as the tokenizer has ids."""
    layernorm_epsilon: PositiveFloat = 1e-5
    """Added to the mean square in RMSNorm."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.num_attention_heads % self.multi_query_group_num:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"multi_query_group_num {self.multi_query_group_num}"
            )
        if self.kv_channels % 4:
            raise ValueError(f"kv_channels {self.kv_channels} is not a multiple of 4: half of it is rotated in pairs")
        return self

    @classmethod
    def read(cls, folder: Place) -> Self:
        """Return the widths that `folder`/config.json states.

        Raises WeightsError when the file is absent or damaged, or describes a model that this code does not compute.
        """
        config = read_config(folder)
        file = folder / "config.json"
        for key, accepted in _ONLY.items():
            if config.get(key) not in accepted:
                raise WeightsError(f"{file}: {key} is {config.get(key)!r}, but only {accepted[0]!r} is computed here")
        try:
            return cls.model_validate({key: config[key] for key in cls.model_fields if key in config})
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise WeightsError(f"{file} does not describe a ChatGLM: {wrong}") from error

    def released_form(self) -> dict[str, Any]:
        """Return the content of a config.json for these widths, which `read` and diffusers' ChatGLMModel understand.

        The file says that there is no final norm, because none is kept.
        """
        only = {key: accepted[0] for key, accepted in _ONLY.items() if key != "rope_ratio"}
        return {
            **only,
            **self.model_dump(),
            "architectures": ["ChatGLMModel"],
            "model_type": "chatglm",
            "original_rope": True,
            "pad_token_id": 0,
            "post_layer_norm": False,
            "pre_seq_len": None,
            "seq_length": 32768,  # how far the rotation's table of other implementations reaches
            "tie_word_embeddings": False,
            "use_cache": True,
        }


RELEASED = Architecture(
    num_layers=28,
    hidden_size=4096,
    num_attention_heads=32,
    multi_query_group_num=2,
    kv_channels=128,
    ffn_hidden_size=13696,
    padded_vocab_size=65024,
)
"""ChatGLM3-6B-Base (2.1.1)."""
