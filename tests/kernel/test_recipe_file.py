from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import pytest
import yaml
from pydantic import Field, PositiveInt, model_validator

from kolors_kernel import BuildContext, ComponentConfig, Registry
from kolors_kernel.component import ExistingPath, FilePath, RecipePath, Settings
from kolors_kernel.errors import RecipeError
from kolors_kernel.kinds import RecipeConfig, TextEncoderConfig
from kolors_kernel.recipe_file import load_recipe, parse_setting, write_recipe
from kolors_kernel.values import ConditioningSpec


class Hash(TextEncoderConfig):
    """Hashes."""

    type: Literal["hash"] = "hash"
    dim: PositiveInt = 8
    """Width."""
    path: ExistingPath | None = None
    """Weights."""
    inner: TextEncoderConfig | None = None
    """Another one."""

    def spec(self) -> ConditioningSpec:
        return ConditioningSpec(4, self.dim, self.dim)

    def build(self, ctx: BuildContext) -> Any:
        return object()


class Zeros(Hash):
    """Nothing."""

    type: Literal["zeros"] = "zeros"  # type: ignore[assignment]


class Stage(Settings):
    """A part of the work."""

    name: str
    """What it is called."""
    steps: PositiveInt = 1
    """How long."""


class Work(RecipeConfig):
    """Some work."""

    type: Literal["work"] = "work"
    text_encoder: TextEncoderConfig
    """The encoder."""
    extra: list[TextEncoderConfig] = Field(default=[])
    """More of them."""
    stages: list[Stage] = Field(default=[])
    """The parts."""
    width: int = 8
    """Must be the encoder's."""
    rate: float = 0.5
    """How fast."""
    store: FilePath = Path("store")
    """Where it goes."""
    note: Any = None
    """Anything."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.text_encoder.spec().width != self.width:
            raise ValueError(f"the encoder is {self.text_encoder.spec().width} wide, the work {self.width}")
        return self

    def graphs(self) -> Mapping[str, Any]:
        return {}

    def build(self, ctx: BuildContext) -> Any:
        return object()


CLASSES: list[type[ComponentConfig]] = [Hash, Zeros, Work]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "known.yaml").write_text("type: work\ntext_encoder: {type: hash}\n")
    components = {(cls.kind, cls.model_fields["type"].default): cls for cls in CLASSES}
    return Registry({}, components, recipe_folders=(shipped,))


@pytest.fixture
def load(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def read(text: str, settings: Mapping[str, Any] | None = None) -> Work:
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        recipe = load_recipe("recipe.yaml", settings or {}, registry=registry)
        assert isinstance(recipe, Work)
        return recipe

    return read


def mistakes(load: Any, text: str, settings: Mapping[str, Any] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, settings)
    return str(caught.value).splitlines()


GOOD = "type: work\ntext_encoder: {type: hash}\n"


def test_the_type_picks_the_class_anywhere_in_the_tree(load) -> None:
    found = load("type: work\ntext_encoder: {type: hash, inner: {type: zeros, dim: 3}}\nextra: [{type: zeros}]\n")
    assert type(found.text_encoder) is Hash
    assert type(found.text_encoder.inner) is Zeros
    assert found.text_encoder.inner.dim == 3
    assert type(found.extra[0]) is Zeros


def test_every_mistake_is_told_at_once_with_file_line_and_key(load) -> None:
    text = """\
type: work
text_encoder: {type: hsh}
extra:
  - {type: hash, dimm: 3}
  - type: zeros
    dim: -1
stages:
  - {steps: many}
stags: []
"""
    found = mistakes(load, text)
    assert (
        "recipe.yaml:2: text_encoder: no text_encoder is called 'hsh'; did you mean 'hash'? Known: hash, zeros" in found
    )
    assert "recipe.yaml:4: extra.0.dimm: hash has no setting 'dimm'; did you mean 'dim'?" in found
    assert "recipe.yaml:6: extra.1.dim: Input should be greater than 0; it is -1" in found
    assert "recipe.yaml:8: stages.0.name: this setting is required" in found
    assert any(line.startswith("recipe.yaml:8: stages.0.steps: ") and "'many'" in line for line in found)
    assert "recipe.yaml:9: stags: work has no setting 'stags'; did you mean 'stages'?" in found
    assert len(found) == 6


def test_an_unknown_setting_near_nothing_is_answered_with_what_there_is(load) -> None:
    found = mistakes(load, GOOD.replace("{type: hash}", "{type: hash, zzz: 1}"))
    assert found == ["recipe.yaml:2: text_encoder.zzz: hash has no setting 'zzz'; it has type, dim, path, inner"]


def test_duplicate_keys_are_refused_and_hide_no_other_mistake(load) -> None:
    text = "type: work\ntext_encoder: {type: hash, dim: 8, dim: 9}\nwidth: 8\nwidth: 9\nnonsense: 1\n"
    found = mistakes(load, text)
    assert "recipe.yaml:2: text_encoder.dim: this key stands twice; first at recipe.yaml:2" in found
    assert "recipe.yaml:4: width: this key stands twice; first at recipe.yaml:3" in found
    assert any("nonsense" in line for line in found)


def test_duplicate_keys_are_refused_though_all_else_is_right(load) -> None:
    assert mistakes(load, GOOD + "width: 8\nwidth: 8\n") == [
        "recipe.yaml:4: width: this key stands twice; first at recipe.yaml:3"
    ]


def test_a_path_that_is_missing_is_named_whole(load, tmp_path: Path) -> None:
    found = mistakes(load, "type: work\ntext_encoder: {type: hash, path: weights/none.bin}\n")
    assert found == [f"recipe.yaml:2: text_encoder.path: there is no file or folder {tmp_path}/weights/none.bin"]


def test_widths_that_do_not_fit_are_told_at_the_recipe(load) -> None:
    assert mistakes(load, GOOD + "width: 9\n") == ["recipe.yaml:1: the encoder is 8 wide, the work 9"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "recipe.yaml: a recipe is a mapping of settings, this file holds nothing"),
        ("[1, 2]", "recipe.yaml: a recipe is a mapping of settings, this file holds a list"),
        ("a: b: c", "recipe.yaml:1: mapping values are not allowed here"),
        ("a: &x 1\nb: *x", "recipe.yaml:2: anchors and aliases are not used in recipes"),
        ("a: !!python/object/apply:os.system ['true']", "recipe.yaml:1: "),
        ("a: " + "[" * 3000, "recipe.yaml: nested too deeply to be a recipe"),
        ("a: \0", "recipe.yaml: not a YAML text: "),
        ("width: 3", "recipe.yaml:1: expected a mapping with a 'type', one of the installed recipe components"),
        ("type: wok", "recipe.yaml:1: no recipe is called 'wok'; did you mean 'work'? Known: work"),
        ("type: [work]", "recipe.yaml:1: no recipe is called ['work']"),
        ("type: work\ntext_encoder: hash", "recipe.yaml:2: text_encoder: expected a mapping with a 'type'"),
    ],
)
def test_what_is_no_recipe_is_told_in_one_line(load, text: str, said: str) -> None:
    found = mistakes(load, text)
    assert len(found) == 1
    assert found[0].startswith(said)


def test_a_file_of_bytes_is_no_recipe(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a YAML text"):
        load_recipe(tmp_path / "bytes.yaml", registry=registry)


def test_a_file_that_may_not_be_read_is_wrong_input(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "private.yaml").touch()
    monkeypatch.setattr(Path, "read_text", refuse)  # root may read everything
    with pytest.raises(RecipeError, match=r"private\.yaml cannot be read: Permission denied"):
        load_recipe(tmp_path / "private.yaml", registry=registry)


def test_numbers_are_read_as_people_write_them(load) -> None:
    found = load(GOOD + "rate: 1e-4\nstages: [{name: a, steps: 500_000}]\n")
    assert (found.rate, found.stages[0].steps) == (1e-4, 500_000)


def test_a_shipped_recipe_goes_by_its_name(registry: Registry) -> None:
    assert load_recipe("known", registry=registry).type == "work"
    with pytest.raises(RecipeError, match=r"no recipe is called 'knwn'; did you mean 'known'\? Known: known"):
        load_recipe("knwn", registry=registry)
    with pytest.raises(RecipeError, match=r"there is no recipe file nowhere\.yaml"):
        load_recipe("nowhere.yaml", registry=registry)


def test_base_merges_settings_and_replaces_other_types(load, tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(
        "type: work\ntext_encoder: {type: hash, dim: 5}\nwidth: 5\nstages: [{name: a}, {name: b}]\n"
    )
    same = load("base: below.yaml\ntext_encoder: {inner: {type: zeros}}\n")
    assert (same.text_encoder.type, same.text_encoder.dim, same.width) == ("hash", 5, 5)
    assert type(same.text_encoder.inner) is Zeros
    other = load("base: below.yaml\ntext_encoder: {type: zeros}\nwidth: 8\nstages: [{name: c}]\n")
    assert (other.text_encoder.type, other.text_encoder.dim) == ("zeros", 8), "another type starts afresh"
    assert [stage.name for stage in other.stages] == ["c"], "lists replace"


def test_base_may_be_a_shipped_recipe_and_have_a_base_itself(load, tmp_path: Path) -> None:
    (tmp_path / "middle.yaml").write_text("base: known\nwidth: 8\n")
    assert load("base: middle.yaml\nnote: top\n").note == "top"


def test_mistakes_point_at_the_file_that_made_them(load, tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("type: work\ntext_encoder: {type: hash, dim: -3}\n")
    assert mistakes(load, "base: below.yaml\nwidth: wide\n") == [
        "below.yaml:2: text_encoder.dim: Input should be greater than 0; it is -3",
        "recipe.yaml:2: width: Input should be a valid integer, unable to parse string as an integer; it is 'wide'",
    ]


def test_a_base_that_is_missing_is_told_where_it_is_named(load) -> None:
    assert mistakes(load, "base: nothing.yaml\n")[0].startswith("recipe.yaml:1: base: there is no recipe file")
    assert "did you mean 'known'" in mistakes(load, "base: knwn\n")[0]


def test_bases_that_go_in_a_circle_are_told_with_the_line_that_closes_it(load, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("base: two.yaml\n")
    (tmp_path / "two.yaml").write_text("\nbase: one.yaml\n")
    said = mistakes(load, "base: one.yaml\n")
    assert said == ["two.yaml:2: base: goes in a circle: one.yaml -> two.yaml -> one.yaml"]
    assert mistakes(load, "base: recipe.yaml\n")[0].endswith("recipe.yaml -> recipe.yaml")


def test_settings_reach_into_mappings_and_lists(load) -> None:
    text = GOOD + "stages: [{name: a}, {name: b}]\n"
    found = load(text, {"stages.1.steps": 7, "text_encoder.inner.type": "zeros", "note.deep.er": 1})
    assert [stage.steps for stage in found.stages] == [1, 7]
    assert found.text_encoder.inner.type == "zeros"
    assert found.note == {"deep": {"er": 1}}


def test_setting_another_type_drops_the_settings_of_the_old_one(load) -> None:
    text = "type: work\ntext_encoder: {type: hash, dim: 5, inner: {type: hash}}\nwidth: 8\n"
    assert load(text, {"text_encoder.type": "zeros"}).text_encoder.inner is None
    same = load(text, {"text_encoder.type": "hash", "width": 5})
    assert same.text_encoder.dim == 5


def test_the_order_of_settings_does_not_matter(load) -> None:
    settings = {"text_encoder.inner.dim": 2, "text_encoder.inner.type": "zeros", "text_encoder.type": "zeros"}
    found = load(GOOD, settings)
    assert found == load(GOOD, dict(reversed(settings.items())))
    assert found.text_encoder.inner.dim == 2


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("stages.2.steps", "--set stages.2.steps: '2' is not an index of a list of 1"),
        ("stages.1", "--set stages.1: '1' is not an index of a list of 1"),
        ("stages.-1.steps", "--set stages.-1.steps: '-1' is not an index of a list of 1"),
        ("stages.first.steps", "--set stages.first.steps: 'first' is not an index of a list of 1"),
        ("width.0", "--set width.0: there is nothing below '8' that '0' could name"),
        ("widht", "--set: widht: work has no setting 'widht'; did you mean 'width'?"),
        ("text_encoder.dim", "--set: text_encoder.dim: Input should be a valid integer"),
        ("text_encoder.0", "--set: text_encoder.0: hash has no setting '0'"),
        ("width.²", "--set width.²: there is nothing below '8' that '²' could name"),
    ],
)
def test_a_setting_that_cannot_be_is_told_by_its_key(load, key: str, said: str) -> None:
    found = mistakes(load, GOOD + "width: 8\nstages: [{name: a}]\n", {key: "text"})
    assert found[0].startswith(said)


def test_a_mistake_in_a_mapping_that_was_set_is_not_blamed_on_the_file(load) -> None:
    found = mistakes(
        load, "type: work\ntext_encoder: {type: hash, dim: 8}\n", {"text_encoder": {"type": "hash", "dim": -1}}
    )
    assert found == ["--set: text_encoder.dim: Input should be greater than 0; it is -1"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.0.b=3", 3),
        ("a.0.b=1.5", 1.5),
        ("a.0.b=true", True),
        ("a.0.b=", None),
        ("a.0.b=x=y", "x=y"),
        ("a.0.b=[1, two]", [1, "two"]),
        ("a.0.b={type: zeros}", {"type": "zeros"}),
        ("a.0.b='3'", "3"),
        ("a.0.b=一只猫", "一只猫"),
    ],
)
def test_a_setting_is_a_key_and_a_yaml_value(text: str, value: object) -> None:
    assert parse_setting(text) == ("a.0.b", value)


@pytest.mark.parametrize("text", ["novalue", "=3", "a..b=3", ".a=3", "a.=3", "a=[1", "a={b: 1, b: 2}"])
def test_a_setting_that_is_not_one_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        parse_setting(text)


def test_paths_are_relative_to_the_file_that_says_them(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "below"
    below.mkdir()
    (below / "weights.bin").touch()
    (below / "base.yaml").write_text("type: work\ntext_encoder: {type: hash, path: weights.bin}\nstore: out\n")
    found = load("base: below/base.yaml\n")
    assert found.text_encoder.path == below / "weights.bin"
    assert found.store == below / "out"
    assert load("base: below/base.yaml\nstore: out\n").store == tmp_path / "out"
    monkeypatch.chdir(below)
    assert parse_setting("store=here")[1].folder == below


def test_a_path_given_from_python_is_relative_to_the_working_folder(load, tmp_path: Path) -> None:
    assert load(GOOD, {"store": "there"}).store == tmp_path / "there"
    assert load(GOOD, {"store": Path("there")}).store == tmp_path / "there"


def test_a_path_goes_home_by_its_tilde(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load(GOOD + "store: ~/x\n").store == tmp_path / "home" / "x"


def test_a_written_recipe_is_the_same_recipe_from_anywhere(
    load, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.bin").touch()
    text = (
        "text_encoder: {type: hash, path: weights.bin, inner: {type: zeros, dim: 3}}\nstore: out\nnote: [é, 一, 1e-4]\n"
    )
    recipe = load("type: work\n" + text, {"extra": [{"type": "zeros"}]})
    write_recipe(recipe, tmp_path / "runs" / "deep" / "recipe.yaml")
    monkeypatch.chdir(tmp_path / "runs")
    assert load_recipe(tmp_path / "runs/deep/recipe.yaml", registry=registry) == recipe
    written = yaml.safe_load((tmp_path / "runs/deep/recipe.yaml").read_text(encoding="utf-8"))
    assert written["text_encoder"]["inner"] == {"type": "zeros", "dim": 3, "path": None, "inner": None}
    assert written["stages"] == [], "every setting is spelled out, defaults too"


def test_writing_a_recipe_leaves_no_part_behind(load, tmp_path: Path) -> None:
    recipe, folder = load(GOOD), tmp_path / "run"
    write_recipe(recipe, folder / "recipe.yaml")
    write_recipe(recipe, folder / "recipe.yaml")
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]


def test_text_of_a_recipe_survives_copying_and_pickling() -> None:
    text = RecipePath("weights", Path("somewhere"))
    for made in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert made == "weights"
        assert made.folder == Path("somewhere")
