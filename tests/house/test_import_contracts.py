from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
PLANTED = {
    "the kernel imports torch": ("kolors_kernel/graph.py", "import torch", "light-kernel"),
    "the kernel imports the checkpoint library": ("kolors_kernel/graph.py", "import kolors_weights", "light-kernel"),
    "the kernel imports a plugin": ("kolors_kernel/registry.py", "import kolors_ops", "light-kernel"),
    "a contract imports a plugin": ("kolors_kernel/testing/fakes.py", "import kolors_ops", "light-kernel"),
    "a plugin imports another": ("plugins/kolors_sdxl/stray.py", "import kolors_ops.auto", "independent-plugins"),
    "the checkpoint library imports a plugin": (
        "kolors_weights/stray.py",
        "import kolors_sdxl",
        "weights-know-no-model",
    ),
    "a config imports torch": ("plugins/kolors_ops/config.py", "import torch", "light-configs"),
    "errors import the command": ("kolors_kernel/errors.py", "import kolors_kernel.cli", "kernel-layers"),
    "a plugin imports the tests' tools": (
        "plugins/kolors_ops/stray.py",
        "import kolors_kernel.testing",
        "testing-is-for-tests",
    ),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'plugins'}", "COLUMNS": "200"}
    command = [sys.executable, "-c", LINT]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def name_of(contract: str) -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return text.split(f'id = "{contract}"\nname = "')[1].split('"')[0]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for package in ("kolors_kernel", "kolors_weights", "plugins"):
        for file in (ROOT / package).rglob("*.py"):
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    return folder


def test_the_tree_keeps_its_import_rules(copy: Path) -> None:
    result = lint(copy)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_import_breaks_the_rule_that_forbids_it(copy: Path, case: str) -> None:
    path, line, contract = PLANTED[case]
    file = copy / path
    before = file.read_text(encoding="utf-8") if file.exists() else None
    file.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        result = lint(copy)
    finally:
        file.unlink() if before is None else file.write_text(before, encoding="utf-8")
    assert result.returncode == 1, result.stdout[-3000:] + result.stderr
    assert f"{name_of(contract)} BROKEN" in result.stdout


def test_settings_can_read_config_json_without_importing_torch_for_it() -> None:
    tree = ast.parse((ROOT / "kolors_weights/reading.py").read_text(encoding="utf-8"))
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert at_import
    assert not {"torch", "safetensors"} & {word for node in at_import for word in ast.unparse(node).split()}
