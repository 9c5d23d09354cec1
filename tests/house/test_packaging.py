from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLUGINS = sorted(p.name for p in (ROOT / "plugins").iterdir() if p.is_dir() and p.name != "__pycache__")
MOST_LINES_WITH_ONE_HOOK, MOST_LINES_WITH_BOTH = 12, 20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    built = next(iter(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))))
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_there_are_plugins_to_check() -> None:
    assert len(PLUGINS) >= 10


def test_every_plugin_folder_has_an_entry_point_called_after_it() -> None:
    assert PROJECT["project"]["entry-points"]["kolors.v1"] == {p.removeprefix("kolors_"): p for p in PLUGINS}


def test_the_wheel_holds_the_kernel_and_every_plugin_and_no_other_package(wheel: list[str]) -> None:
    packages = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert packages == {"kolors_kernel", "kolors_weights", *PLUGINS}


def test_the_wheel_holds_every_source_and_recipe_of_every_plugin(wheel: list[str]) -> None:
    here = {
        path.relative_to(ROOT / "plugins").as_posix()
        for ending in ("*.py", "*.yaml", "py.typed", "*.md")
        for path in (ROOT / "plugins").rglob(ending)
        if "__pycache__" not in path.parts
    }
    assert here <= set(wheel)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_is_typed_and_declares_itself_in_a_few_lines(plugin: str) -> None:
    folder = ROOT / "plugins" / plugin
    assert (folder / "py.typed").is_file()
    text = (folder / "__init__.py").read_text(encoding="utf-8")
    most = MOST_LINES_WITH_BOTH if text.count("@hookimpl") > 1 else MOST_LINES_WITH_ONE_HOOK
    lines = len(text.splitlines())
    assert lines <= most


def test_the_import_rules_name_every_plugin() -> None:
    rules = PROJECT["tool"]["importlinter"]
    by_id = {contract["id"]: contract for contract in rules["contracts"]}
    assert sorted(rules["root_packages"]) == sorted(["kolors_kernel", "kolors_weights", *PLUGINS])
    assert sorted(by_id["independent-plugins"]["modules"]) == PLUGINS
    assert set(PLUGINS) <= set(by_id["light-kernel"]["forbidden_modules"])


def test_the_import_rules_cover_every_module_of_settings() -> None:
    rule = next(c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["id"] == "light-configs")
    settings = {f"{path.parent.name}.{path.stem}" for path in (ROOT / "plugins").glob("*/*_config.py")}
    assert set(rule["source_modules"]) == {"*.config"} | settings


def test_every_requirement_is_pinned_to_the_tested_version_and_nothing_else_is() -> None:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {re.split(r"[<>=\[]", requirement)[0].lower() for requirement in wanted} - {project["name"]}
    lines = (ROOT / "requirements/dev.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert pinned == names


def test_both_places_that_say_the_version_agree() -> None:
    text = (ROOT / "kolors_kernel/__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{PROJECT["project"]["version"]}"' in text
