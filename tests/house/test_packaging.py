from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLUGINS = sorted(p.name for p in (ROOT / "plugins").iterdir() if p.is_dir() and p.name != "__pycache__")
MOST_LINES_WITH_ONE_HOOK, MOST_LINES_WITH_BOTH = 12, 20


# Without `site` no .pth is read, so the sources that an editable install points at cannot stand in for the wheel.
OUTSIDE = """
import sys
from pathlib import Path
unpacked, packages, *words = sys.argv[1:]
sys.path += [unpacked, packages]
import kolors_demo
from kolors_kernel.cli import main
assert Path(kolors_demo.__file__).is_relative_to(unpacked), kolors_demo.__file__
sys.exit(main(words))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder))))) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> list[str]:
    return [path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()]


def test_there_are_plugins_to_check() -> None:
    assert len(PLUGINS) >= 10


def test_every_plugin_folder_has_an_entry_point_called_after_it() -> None:
    assert PROJECT["project"]["entry-points"]["kolors.v1"] == {p.removeprefix("kolors_"): p for p in PLUGINS}


def test_the_wheel_holds_the_kernel_and_every_plugin_and_no_other_package(wheel: list[str]) -> None:
    packages = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert packages == {"kolors_kernel", "kolors_weights", *PLUGINS}


def test_the_wheel_holds_every_file_of_every_plugin(wheel: list[str]) -> None:
    here = {
        path.relative_to(ROOT / "plugins").as_posix()
        for path in (ROOT / "plugins").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here <= set(wheel)
    for kept in ("data/emoji.zarr/zarr.json", "data/tokenizer.model", "data/LICENSES.md", "recipes/quickstart.yaml"):
        assert f"kolors_demo/{kept}" in wheel
    assert {name.split("/")[2] for name in wheel if name.startswith("kolors_demo/weights/")} == {
        "autoencoder",
        "backbone",
        "text_encoder",
    }


def test_the_wheel_holds_the_licence(wheel: list[str]) -> None:
    assert [name for name in wheel if name.endswith(".dist-info/licenses/LICENSE")]


def test_the_wheel_draws_a_picture_without_the_sources(unpacked: Path, tmp_path: Path) -> None:
    packages = str(Path(pytest.__file__).resolve().parents[1])
    words = ["run", "quickstart", "--set", "prompts=[老虎头]", "--set", "solver.steps=1"]
    command = [sys.executable, "-S", "-c", OUTSIDE, str(unpacked), packages, *words]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/quickstart/contact_sheet.png").is_file()
    assert str(unpacked) in (tmp_path / "runs/quickstart/recipe.yaml").read_text(encoding="utf-8")


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
    assert set(rule["source_modules"]) == {"*.config", "*.*.config"} | settings


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
