from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent
from typing import Protocol

import pytest

from kolors_kernel.registry import discover


class Install(Protocol):
    def __call__(self, name: str, source: str, *, entry: str | None = None, group: str = "kolors.v1") -> EntryPoint: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install distributions as pip leaves them, without pip: a module and a dist-info folder on sys.path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    discover.cache_clear()

    def put(name: str, source: str, *, entry: str | None = None, group: str = "kolors.v1") -> EntryPoint:
        module = f"stranger_{name}"
        (site / f"{module}.py").write_text(dedent(source), encoding="utf-8")
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: stranger-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry or name} = {module}\n")
        put_there.append(module)
        return EntryPoint(entry or name, module, group)

    put_there: list[str] = []
    yield put
    for module in put_there:
        sys.modules.pop(module, None)
    discover.cache_clear()
