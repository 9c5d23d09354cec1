"""What every component promises, whatever its kind: the settings class."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from pydantic import ValidationError

from kolors_kernel.component import BuildContext, ComponentConfig, is_kind
from kolors_kernel.registry import Plugin, Registry, discover

C = TypeVar("C", bound=ComponentConfig)


def examples(count: int) -> settings:
    """Return Hypothesis settings for a test that subclasses inherit: so many examples, and no clock."""
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.differing_executors])


class ComponentContract(Generic[C]):
    """The promises of a settings class: frozen, strict, JSON-able, explained, built without anything prepared."""

    config: C
    """The component under test; most often `tiny()`."""

    def context(self, folder: Path, dtype: str = "float32") -> BuildContext:
        """Return the context the component is built in: the CPU, with `folder` to write to."""
        return BuildContext("cpu", dtype, folder)

    def kind_class(self) -> type[ComponentConfig]:
        """Return the class of the component's kind: what a field of a recipe is annotated with."""
        return next(cls for cls in type(self.config).__mro__ if issubclass(cls, ComponentConfig) and is_kind(cls))

    def test_names_its_kind_and_type(self) -> None:
        """Both are lower_snake, and the kind is the one of its base class."""
        assert re.fullmatch(r"[a-z][a-z0-9_]*", self.config.type)
        assert re.fullmatch(r"[a-z][a-z0-9_]*", self.config.kind)
        assert self.kind_class().kind == self.config.kind

    def test_explains_itself_and_every_setting(self) -> None:
        """The docstrings are what `kolors components` and `kolors describe` print."""
        cls = type(self.config)
        assert (cls.__doc__ or "").strip(), f"{cls.__name__} has no docstring of its own"
        silent = [name for name, info in cls.model_fields.items() if name != "type" and not info.description]
        assert not silent, f"settings without a docstring under them: {', '.join(silent)}"

    def test_settings_cannot_be_changed(self) -> None:
        """A config is a value."""
        for name in type(self.config).model_fields:
            with pytest.raises(ValidationError):
                setattr(self.config, name, getattr(self.config, name))

    def test_settings_survive_json(self) -> None:
        """Dumping to JSON and reading back loses nothing."""
        text = self.config.model_dump_json()
        assert type(self.config).model_validate_json(text) == self.config
        assert type(self.config).model_validate(json.loads(text)) == self.config

    def test_is_found_by_its_type(self) -> None:
        """A field annotated with the kind accepts the dumped settings and makes this very component of them."""
        mine = {(self.config.kind, self.config.type): type(self.config)}
        plugins: dict[str, Plugin] = {}
        registry = Registry(plugins, {**discover().components, **mine})
        data = self.config.model_dump(mode="json")
        assert self.kind_class().model_validate(data, context={"registry": registry}) == self.config

    def test_refuses_a_setting_it_does_not_have(self) -> None:
        """A typo is an error that names it."""
        data: dict[str, Any] = {**self.config.model_dump(mode="json"), "no_such_setting": 1}
        with pytest.raises(ValidationError, match="no_such_setting"):
            type(self.config).model_validate(data)

    def test_tiny_needs_nothing(self) -> None:
        """`tiny()` is made from no argument; what it reads from, it prepares itself in a temporary folder."""
        assert type(type(self.config).tiny()) is type(self.config)
