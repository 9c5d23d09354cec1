from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

STORE = Path(__file__).parents[2] / "plugins/kolors_demo/data/emoji.zarr"
TOKENIZER = STORE.parent / "tokenizer.model"

TEXT_ENCODER = {
    "type": "chatglm3",
    "tokenizer": str(TOKENIZER),
    "max_tokens": 40,
    "architecture": {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "multi_query_group_num": 1,
        "kv_channels": 16,
        "ffn_hidden_size": 64,
    },
}
AUTOENCODER = {
    "type": "sdxl_vae",
    "architecture": {
        "block_channels": [8, 16, 16],
        "layers_per_block": 1,
        "latent_channels": 4,
        "groups": 4,
        "scaling_factor": 1.0,
        "force_upcast": False,
    },
}
BACKBONE = {
    "type": "sdxl_unet",
    "architecture": {
        "block_channels": [16, 32],
        "layers_per_block": 1,
        "transformer_layers": [0, 1],
        "heads": [1, 2],
        "cross_attention_width": 32,
        "size_embedding_width": 8,
        "groups": 8,
    },
}
MODEL = {"text_encoder": TEXT_ENCODER, "autoencoder": AUTOENCODER, "backbone": BACKBONE}


def fruit(**settings: Any) -> dict[str, Any]:
    """The real pictures of fruit in the demo's store, small."""
    filters = [{"type": "tags", "where": {"subgroup": ["food-fruit"], "split": ["train"]}}]
    return {"type": "zarr", "path": str(STORE), "buckets": {"side": 16}, "batch": 8, "filters": filters} | settings


def train_recipe(steps: tuple[int, int] = (4, 3), **settings: Any) -> dict[str, Any]:
    """Two stages: both parts with the base schedule, then the backbone alone with the extended one."""
    concept = {
        "name": "concept",
        "schedule": {"type": "scaled_linear"},
        "data": fruit(),
        "steps": steps[0],
        "trains": ["backbone", "text_encoder"],
        "optimizer": {"learning_rate": 1e-3, "warmup": 2},
    }
    quality = {
        "name": "quality",
        "schedule": {"type": "scaled_linear", "steps": 1100, "beta_end": 0.014},
        "data": fruit(buckets={"side": 32}),
        "steps": steps[1],
    }
    return {"type": "train", **MODEL, "stages": [concept, quality], "log_every": 1, "checkpoint_every": 2} | settings


def drawing_recipe(**settings: Any) -> dict[str, Any]:
    """Three pictures in four steps by random weights."""
    return {
        "type": "text_to_image",
        **MODEL,
        "schedule": {"type": "scaled_linear", "steps": 1100, "beta_end": 0.014},
        "solver": {"type": "euler", "steps": 4},
        "height": 16,
        "width": 24,
        "prompts": ["红苹果", "a red apple", "苹果 apple 🍎"],
    } | settings


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a recipe into the test's folder and return its path."""

    def write(recipe: dict[str, Any], name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The pieces of tiny recipes; a fixture, since test modules cannot import one another."""
    return SimpleNamespace(
        model=MODEL,
        text_encoder=TEXT_ENCODER,
        autoencoder=AUTOENCODER,
        backbone=BACKBONE,
        fruit=fruit,
        train=train_recipe,
        drawing=drawing_recipe,
        store=STORE,
    )
