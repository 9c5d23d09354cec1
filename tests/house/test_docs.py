from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kolors_kernel import cli, discover, load_recipe
from kolors_kernel.kinds import RecipeConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "reference")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
SECTIONS = ["2", "2.1.1", "2.1.2", "2.1.3", "2.2.1", "2.2.2", "3.1", "3.2", "3.3.1", "3.3.2", "4"]
EXAMPLE = ("text_encoder", "hello")  # installed by hand, and by tests/strangers
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def fenced(page: str, language: str) -> list[str]:
    return [text for name, text in FENCED.findall((ROOT / page).read_text(encoding="utf-8")) if name == language]


def every(language: str) -> list[tuple[str, str]]:
    return [(page, text) for page in NAMES for text in fenced(page, language)]


def commands() -> list[list[str]]:
    """Return every line of a fenced block without a language that begins with `kolors ` or `make `."""
    texts = [text.replace("\\\n", " ") for _, text in every("") + every("bash")]
    lines = [line for text in texts for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("kolors ", "make "))]


def setting(recipe: RecipeConfig, key: str) -> object:
    """Return what the dotted key of a recipe is set to."""
    here: Any = recipe
    for part in key.split("."):
        here = here[int(part)] if part.isdecimal() else getattr(here, part)
    return here


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_reference", ROOT / "scripts/write_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_registry_says(writer: ModuleType) -> None:
    written = {p.name: p.read_text(encoding="utf-8") for p in (ROOT / "docs/reference").glob("*.md")}
    now = writer.pages(discover())
    assert sorted(written) == sorted(now), "run `make docs`"
    assert not [name for name in now if now[name] != written[name]], "run `make docs`"


def test_the_reference_names_every_component_of_this_project(writer: ModuleType) -> None:
    registry, texts = discover(), writer.pages(discover())
    for (kind, name), plugin in registry.provided_by.items():
        if registry.plugins[plugin].distribution == "kolors-kernel":
            assert f"## {kind} `{name}`" in texts[f"{kind}.md"]


@pytest.mark.parametrize("page", NAMES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    targets = LINK.findall((ROOT / page).read_text(encoding="utf-8"))
    inside = [target.partition("#")[0] for target in targets if not target.startswith(("https://", "#"))]
    assert not [target for target in inside if not ((ROOT / page).parent / target).exists()]


@pytest.mark.parametrize(
    ("page", "text"), every("yaml"), ids=lambda value: value if value.endswith(".md") else "recipe"
)
def test_every_recipe_in_the_docs_is_valid(page: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    load_recipe(tmp_path / "recipe.yaml")


def test_every_command_in_the_docs_exists() -> None:
    known = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert commands()
    for program, *words in commands():
        if program == "make":
            assert re.search(rf"^{words[0]}:", known, re.MULTILINE), words
            continue
        options = cli._parser().parse_args(words)
        recipe = getattr(options, "recipe", None)
        if recipe is not None and not recipe.endswith(".yaml"):
            settings = dict(cli.parse_setting(text) for text in options.set)
            # What an earlier command makes, or a letter stands for, is not there yet; that it can be set is checked.
            paths = {key for key in settings if key.split(".")[-1] == "path"}
            loaded = load_recipe(recipe, {key: value for key, value in settings.items() if key not in paths})
            assert not [key for key in paths if not isinstance(setting(loaded, key), Path | str)]
        if hasattr(options, "kind") and (options.kind, options.type) != EXAMPLE:
            discover().find(options.kind, options.type)


def test_the_python_page_runs_as_it_stands(tmp_path: Path) -> None:
    code = "\n".join(["from __future__ import annotations", *fenced("docs/python-api.md", "python")])
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_section_of_the_paper_has_a_row() -> None:
    rows = re.findall(r"^\| ([\d.]+)", (ROOT / "docs/paper-to-code.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) == set(SECTIONS)


def named_code() -> list[str]:
    text = (ROOT / "docs/paper-to-code.md").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"`(kolors_\w+(?:\.\w+)*)`", text)))


@pytest.mark.parametrize("name", named_code())
def test_the_code_that_the_paper_is_mapped_to_exists(name: str) -> None:
    folder = ROOT if name.startswith(("kolors_kernel", "kolors_weights")) else ROOT / "plugins"
    path = folder.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return
    module = path.parent.with_suffix(".py")
    assert module.is_file(), f"there is no {name}"
    body = ast.parse(module.read_text(encoding="utf-8")).body
    assert path.name in {n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef)}


def test_the_plugin_shown_is_as_short_as_the_readme_says() -> None:
    tree = ast.parse((ROOT / "examples/kolors-hello/kolors_hello.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom | ast.If)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    lines = [line for line in ast.unparse(tree).splitlines() if line.strip()]
    assert len(lines) <= 25
    assert "25 lines" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_decision_states_context_choice_and_price_in_a_page() -> None:
    records = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text(encoding="utf-8")
        assert all(f"**{part}.**" in text for part in ("Context", "Choice", "Price")), record.name
        assert len(text.splitlines()) <= 30, record.name


@pytest.mark.parametrize(("language", "file"), [("python", "kolors_hello.py"), ("toml", "pyproject.toml")])
def test_the_plugin_shown_is_the_one_that_is_tested(language: str, file: str) -> None:
    tested = (ROOT / "examples/kolors-hello" / file).read_text(encoding="utf-8")
    assert tested in fenced("docs/write-a-plugin.md", language)
    parts = [part for text in fenced("README.md", language) for part in re.split(r"\n\n\n", text)]
    assert parts, "the README shows the parts that matter"
    assert not [part for part in parts if part.strip() not in tested]
