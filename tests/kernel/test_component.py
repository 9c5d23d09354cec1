from __future__ import annotations

import pickle
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from pydantic import Field, ValidationError

from kolors_kernel import BuildContext, ComponentConfig, Registry
from kolors_kernel.component import Settings, is_kind, type_name


class ToolConfig(ComponentConfig):
    """Does something."""

    kind: ClassVar[str] = "tool"


class Saw(ToolConfig):
    """Cuts."""

    type: Literal["saw"] = "saw"
    teeth: int = 20
    """How many."""


class FineSaw(Saw):
    """Cuts finely."""

    type: Literal["fine_saw"] = "fine_saw"  # type: ignore[assignment]
    oil: str = "yes"
    """Which."""


class Box(Settings):
    """Holds tools."""

    tool: ToolConfig = Field(default={"type": "saw"}, validate_default=True)  # type: ignore[assignment]
    """One."""
    others: dict[str, list[ToolConfig]] = Field(default={})
    """More."""
    maybe: ToolConfig | None = None
    """Perhaps."""


REGISTRY = Registry({}, {("tool", "saw"): Saw, ("tool", "fine_saw"): FineSaw})


def box(**data: object) -> Box:
    return Box.model_validate(data, context={"registry": REGISTRY})


def test_a_kind_is_a_class_without_a_type_of_its_own() -> None:
    assert is_kind(ToolConfig)
    assert not is_kind(Saw)
    assert type_name(FineSaw) == "fine_saw"


def test_a_field_of_a_kind_takes_any_component_of_it() -> None:
    found = box(tool={"type": "fine_saw", "teeth": 40}, others={"a": [{"type": "saw"}]}, maybe={"type": "saw"})
    assert found.tool == FineSaw(teeth=40)
    assert found.others == {"a": [Saw()]}
    assert found.maybe == Saw()
    assert box(tool=Saw(teeth=3)).tool == Saw(teeth=3), "an object is taken as it is"


def test_a_default_may_be_given_by_name() -> None:
    assert box().tool == Saw()
    assert box(tool={"teeth": 3}).tool == Saw(teeth=3), "settings without a type are those of the default"
    assert box(tool={"type": "fine_saw"}).tool == FineSaw()


def test_dumping_keeps_the_settings_of_the_component_and_not_only_of_its_kind() -> None:
    made = box(tool={"type": "fine_saw", "oil": "no"})
    assert made.model_dump()["tool"] == {"type": "fine_saw", "teeth": 20, "oil": "no"}
    assert Box.model_validate(made.model_dump(mode="json"), context={"registry": REGISTRY}) == made


def test_a_component_of_another_kind_is_refused() -> None:
    class Food(ComponentConfig):
        """Not a tool."""

        kind: ClassVar[str] = "food"
        type: Literal["saw"] = "saw"

    with pytest.raises(ValidationError, match="tool"):
        box(tool=Food())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"tool": "saw"}, "expected a mapping with a 'type', one of the installed tool components"),
        ({"maybe": {"teeth": 3}}, "expected a mapping with a 'type'"),
        ({"tool": {"type": None}}, "no tool is called None"),
        ({"tool": {"type": "swa"}}, "no tool is called 'swa'; did you mean 'saw'? Known: fine_saw, saw"),
        ({"tool": {"type": 3}}, "no tool is called 3. Known: fine_saw, saw"),
        ({"tool": {"type": "saw", "tooth": 3}}, "saw has no setting 'tooth'; did you mean 'teeth'?"),
        ({"tool": {"type": "saw", "teeth": "x" * 500}}, "xxx..."),
        ({"tol": 3}, "box has no setting 'tol'; did you mean 'tool'?"),
    ],
)
def test_a_mistake_is_told_in_words(data: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        box(**data)
    assert said in caught.value.errors()[0]["msg"]
    assert len(caught.value.errors()[0]["msg"]) < 200


def test_settings_are_values() -> None:
    assert Saw(teeth=3) == Saw(teeth=3) != Saw()
    assert hash(Saw(teeth=3)) == hash(Saw(teeth=3))
    assert pickle.loads(pickle.dumps(Saw(teeth=3))) == Saw(teeth=3)
    with pytest.raises(ValidationError):
        Saw().teeth = 3  # type: ignore[misc]


def test_the_context_of_a_build_takes_torch_names_and_torch_objects() -> None:
    found = BuildContext(torch.device("cpu", 0), torch.bfloat16, "runs/x")  # type: ignore[arg-type]
    assert found == BuildContext("cpu:0", "bfloat16", Path("runs/x"))
