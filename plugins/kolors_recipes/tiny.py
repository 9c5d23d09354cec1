"""The smallest working settings of each recipe, from the tiny components of the plugins that are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kolors_kernel import ComponentConfig, discover


def tiny(kind: str, name: str) -> ComponentConfig:
    """Return the tiny component of this kind and type. Raises ValueError when no plugin provides it."""
    return discover().find(kind, name).tiny()


def model() -> dict[str, Any]:
    """Return the three parts, with random weights."""
    encoder = tiny("text_encoder", "chatglm3").model_copy(update={"max_tokens": 128})  # it reads bytes: a sentence
    return {
        "text_encoder": encoder,
        "autoencoder": tiny("autoencoder", "sdxl_vae"),
        "backbone": tiny("backbone", "sdxl_unet"),
    }


def drawing() -> dict[str, Any]:
    """Return what it takes to draw 16 pixels in two steps."""
    solver = tiny("solver", "euler")
    return {**model(), "schedule": tiny("noise_schedule", "scaled_linear"), "solver": solver, "height": 16, "width": 16}


def picture(name: str) -> Path:
    """Return the path of a picture that ships beside the recipes."""
    return Path(__file__).parent / "recipes" / name


def phase() -> dict[str, Any]:
    """Return two steps of training on a tiny store."""
    return {"name": "only", "data": tiny("data_source", "zarr"), "steps": 2}
