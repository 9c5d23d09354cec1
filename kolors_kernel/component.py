"""Settings, and the component: declared by a frozen pydantic class, made by that class's `build`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError


@dataclass(frozen=True)
class BuildContext:
    """Where and how a component is built: device and dtype by torch's names, and the folder of the run.

    `dtype` is the name of a torch floating type ("float32", "bfloat16"); a torch.dtype is accepted and turned
    into its name, so that this class works without torch. `out` is the folder a job may write to.
    """

    device: str = "cpu"
    dtype: str = "float32"
    out: Path = field(default_factory=lambda: Path("runs"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", str(self.device))
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        object.__setattr__(self, "out", Path(self.out))


class RecipePath(str):
    """Text from a recipe file that remembers the folder of that file, so a relative path means one place."""

    folder: Path

    def __new__(cls, text: str, folder: Path) -> RecipePath:
        """Wrap `text`, written in a file of `folder`."""
        made = super().__new__(cls, text)
        made.folder = folder
        return made

    def __reduce__(self) -> tuple[type[RecipePath], tuple[str, Path]]:
        return RecipePath, (str(self), self.folder)  # what copy and pickle make it anew from


def _resolve(value: object) -> object:
    folder = value.folder if isinstance(value, RecipePath) else Path.cwd()
    if not isinstance(value, str | Path):
        return value
    # As text: reading from JSON, pydantic takes no Path for a path.
    return os.path.normpath(folder / Path(value).expanduser())


def _must_exist(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    return path


FilePath = Annotated[Path, BeforeValidator(_resolve)]
"""A path: relative to the recipe file that says it, or to the working folder when it comes from elsewhere.

It becomes absolute, so that the recipe a run writes down means the same place.
"""
ExistingPath = Annotated[FilePath, AfterValidator(_must_exist), "that exists"]
"""A path that must exist when the recipe is checked; the text beside it is what `kolors describe` adds."""


class Settings(BaseModel):
    """A frozen, JSON-able group of settings that refuses keys it does not know and names the nearest one it does."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        polymorphic_serialization=True,  # without it a field typed by its kind dumps no setting of the component
        validate_default=True,
    )

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_nearest(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(_with_default_types(cls, data) if isinstance(data, Mapping) else data)
        except ValidationError as error:
            lines = [_in_words(cls, line) for line in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, lines) from None


def _with_default_types(cls: type[BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """Let `solver: {steps: 4}` mean the type that the field has by default."""
    filled = dict(data)
    for name, info in cls.model_fields.items():
        given, default = data.get(name), info.default
        if isinstance(given, Mapping) and isinstance(default, Mapping) and "type" in default:
            filled[name] = {"type": default["type"], **given}
    return filled


def _in_words(cls: type[BaseModel], line: ErrorDetails) -> InitErrorDetails:
    """Return pydantic's error in our words: the name a mistyped setting may have meant, no technical prefix."""
    text = line["msg"].removeprefix("Value error, ")
    if line["type"] == "extra_forbidden" and len(line["loc"]) == 1:
        near = difflib.get_close_matches(str(line["loc"][0]), cls.model_fields, n=1)
        owner = cls.model_fields["type"].default if issubclass(cls, ComponentConfig) else cls.__name__.lower()
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(cls.model_fields)}"
        text = f"{owner} has no setting {line['loc'][0]!r}{hint}"
    elif line["type"] == "missing":
        text = "this setting is required"
    elif line["type"] not in ("setting", "value_error") and isinstance(line["input"], str | int | float):
        text = f"{text}; it is {_short(line['input'])}"
    kind = PydanticCustomError("setting", "{text}", {"text": text})
    return {"type": kind, "loc": line["loc"], "input": line["input"]}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class ComponentConfig(Settings):
    """The settings of one component: frozen, strict about unknown keys, JSON-able, free of torch.

    A subclass given a `kind` in its class line and no literal `type` is a kind: a field annotated with it accepts
    every installed component of that kind, and the `type` in the data picks which. A subclass with a literal `type`
    is a component; its fields are its settings and their docstrings are what `kolors describe` prints.
    """

    kind: ClassVar[str]
    type: str

    def __init_subclass__(cls, *, kind: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind:
            cls.kind = kind

    @classmethod
    def tiny(cls) -> Self:
        """Return the smallest working instance: random weights, no files; contracts and docs build it."""
        return cls.model_validate({"type": type_name(cls)})

    @model_validator(mode="wrap")
    @classmethod
    def _choose_by_type(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if not is_kind(cls) or isinstance(data, ComponentConfig):
            return handler(data)
        from kolors_kernel.registry import registry_of

        if not isinstance(data, Mapping) or "type" not in data:
            raise ValueError(f"expected a mapping with a 'type', one of the installed {cls.kind} components")
        chosen = registry_of(info).find(cls.kind, data["type"])
        return cast(Self, chosen.model_validate(data, context=info.context))


def is_kind(cls: type[ComponentConfig]) -> bool:
    """Tell whether `cls` stands for a whole kind rather than for one component."""
    return cls.model_fields["type"].is_required()


def type_name(cls: type[ComponentConfig]) -> str:
    """Return the name that `type:` picks this component by."""
    return str(cls.model_fields["type"].default)
