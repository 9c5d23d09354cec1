"""The example plugin as its user meets it: installed by pip into a fresh place, taken by one line, held to its kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/kolors-hello"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefix")
    quiet = ["-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    call(folder, "-m", "pip", "install", *quiet, "--target", str(folder / "site"), str(EXAMPLE))
    return folder / "site"


def call(folder: Path, *arguments: str, site: Path | None = None) -> str:
    environment = {**os.environ, **({"PYTHONPATH": str(site)} if site else {})}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kolors(folder: Path, *lines: str, site: Path) -> str:
    """Run command lines one after the other in one process, and fail if one does."""
    script = (
        "import sys; from kolors_kernel.cli import main\nfor line in sys.argv[1:]: main(line.split()) and sys.exit(1)"
    )
    return call(folder, "-c", script, *lines, site=site)


def test_it_is_listed_with_its_distribution(site: Path, tmp_path: Path) -> None:
    rows = json.loads(kolors(tmp_path, "components --json", site=site))
    mine = [row for row in rows if row["type"] == "hello"]
    assert [(row["kind"], row["plugin"]) for row in mine] == [("text_encoder", "hello")]
    assert mine[0]["summary"]
    line = next(line for line in kolors(tmp_path, "plugins", site=site).splitlines() if line.startswith("hello"))
    assert "kolors-hello" in line


def test_one_line_of_a_recipe_takes_it(site: Path, tmp_path: Path) -> None:
    lines = (EXAMPLE / "hello.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2, "one line names the base and one the encoder"
    for name in ("hello", "tiny"):
        (tmp_path / f"{name}.yaml").write_bytes((EXAMPLE / f"{name}.yaml").read_bytes())
    runs = ("run hello.yaml --out hello", "run tiny.yaml --out tiny", "run hello/recipe.yaml --out again")
    kolors(tmp_path, *runs, site=site)
    pictures = {name: (tmp_path / name / "000.png").read_bytes() for name in ("hello", "tiny", "again")}
    assert pictures["hello"].startswith(b"\x89PNG")
    assert pictures["hello"] != pictures["tiny"], "the other encoder makes another picture"
    assert pictures["hello"] == pictures["again"], "the resolved recipe is the same run"


def test_it_keeps_the_contract_of_its_kind(site: Path, tmp_path: Path) -> None:
    (tmp_path / "test_hello.py").write_bytes((EXAMPLE / "test_kolors_hello.py").read_bytes())
    said = call(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_hello.py", site=site)
    assert " passed" in said
