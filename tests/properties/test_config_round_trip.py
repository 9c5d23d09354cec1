"""A recipe written down and read again is the same recipe, for every component and whatever the text in it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kolors_kernel import ComponentConfig, discover, load_recipe
from kolors_kernel.kinds import RecipeConfig
from kolors_kernel.recipe_file import write_recipe
from kolors_kernel.testing.strategies import prompts

EVERY = sorted(discover().components.items())


@pytest.mark.parametrize("cls", [cls for _, cls in EVERY], ids=[f"{kind}-{name}" for (kind, name), _ in EVERY])
def test_every_component_survives_yaml(cls: type[ComponentConfig]) -> None:
    config = cls.tiny()
    text = yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True)
    assert cls.model_validate(yaml.safe_load(text)) == config


def tiny_drawing() -> dict[str, Any]:
    return discover().find("recipe", "text_to_image").tiny().model_dump(mode="json")


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(prompts(), min_size=1, max_size=4),
    scale=st.floats(1, 1e6),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_written_recipe_is_the_same_recipe_whatever_is_in_it(texts: list[str], scale: float, seed: int) -> None:
    guidance = {"type": "classifier_free", "scale": scale}
    data = {**tiny_drawing(), "prompts": texts, "negative_prompt": texts[0], "seed": seed, "guidance": guidance}
    recipe = RecipeConfig.model_validate(data)
    with tempfile.TemporaryDirectory() as folder:
        write_recipe(recipe, Path(folder) / "recipe.yaml")
        assert load_recipe(Path(folder) / "recipe.yaml") == recipe
