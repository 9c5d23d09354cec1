"""A whole model by one path: where its parts are, and whether they can be looked at without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kolors_kernel.component import RecipePath
from kolors_weights.places import HubPlace

FOLDERS = {
    "text_encoder": ("text_encoder",),
    "autoencoder": ("vae", "autoencoder"),
    "backbone": ("unet", "backbone"),
}
"""What the folders of the parts are called: in the released models, and where a training writes them."""


def with_paths_of_the_model(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe with `model` spread over the parts that name no path.

    Of a part that wraps another one of its kind, under `of`, it is the inner one's. Raises ValueError when every part
    names a path.
    """
    settings = dict(data)
    model = settings.pop("model", None)
    if model is None:
        return settings
    filled = [name for name in FOLDERS if _fill(settings, name, _folder(model, FOLDERS[name]))]
    if not filled:
        raise ValueError(f"model is {model}, but each of {', '.join(FOLDERS)} names a path of its own: leave one out")
    return settings


def _fill(settings: dict[str, Any], name: str, path: object) -> bool:
    part = settings.get(name)
    if not isinstance(part, Mapping):
        return False
    settings[name] = part = dict(part)
    if "of" in part:
        return _fill(part, "of", path)
    if part.get("path") is not None:
        return False
    part["path"] = path
    return True


def _folder(model: object, names: tuple[str, ...]) -> object:
    """Return the part's folder: the first of the names that is there, or else the first."""
    if isinstance(model, HubPlace) or str(model).startswith("hf://"):
        return f"{str(model).rstrip('/')}/{names[0]}"
    base = model.folder if isinstance(model, RecipePath) else Path.cwd()
    folder = base / Path(str(model)).expanduser()
    return folder / next((name for name in names if (folder / name).exists()), names[0])


def names_a_place_on_the_hub(settings: object) -> bool:
    """Tell whether the settings, or those of a component within, name a place that may have to be fetched."""
    if isinstance(settings, BaseModel):
        return any(names_a_place_on_the_hub(getattr(settings, name)) for name in type(settings).model_fields)
    return isinstance(settings, HubPlace)
