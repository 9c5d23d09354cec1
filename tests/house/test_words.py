"""Words that must not be in the project: paths of one machine, and promises instead of work."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    ".ci",
    "benchmarks",
    "docs",
    "examples",
    "kolors_kernel",
    "kolors_weights",
    "plugins",
    "requirements",
    "scripts",
    "tests",
)
ENDINGS = {".md", ".py", ".toml", ".txt", ".yaml", ""}
FORBIDDEN = (
    ("a path of one machine", re.compile(r"(?<![\w.:/*-])/(?:work|tmp|root|home)\b(?!\()")),
    ("a stub", re.compile("NotImplemented" + "Error")),
    ("a promise in a comment", re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")),
    ("a registry's host", re.compile(r"(?:pypi\." + r"org|pythonhosted|npmjs)", re.IGNORECASE)),
)


def texts() -> list[Path]:
    below = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    top = [path for path in ROOT.iterdir() if path.name != "LICENSE"]
    return [
        path
        for path in (*below, *top)
        if path.is_file() and path.suffix in ENDINGS and "__pycache__" not in path.parts and ".zarr" not in str(path)
    ]


def test_no_file_holds_a_forbidden_word() -> None:
    found = []
    for path in texts():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # a file without an ending need not be text
            continue
        for number, line in enumerate(lines, start=1):
            found += [
                f"{path.relative_to(ROOT)}:{number}: {what}: {line.strip()[:100]}"
                for what, pattern in FORBIDDEN
                if path != Path(__file__) and pattern.search(line)
            ]
    assert not found, "\n".join(found)
