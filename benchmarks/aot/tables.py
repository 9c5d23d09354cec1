"""The tables of docs/kernels.md from the JSON lines of this bench: python -m benchmarks.aot.tables aot.jsonl."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]


def tables(lines: Iterable[str]) -> str:
    """Return the tables in Markdown: the kernels on every family, ours beside peers, and errors."""
    records = [json.loads(line) for line in lines]
    rows = [each for each in records if each["row"] == "comparison"]
    notes = [each for each in records if each["row"] == "note"]
    parts = [_kernels(rows, dtype) for dtype in ("bfloat16", "float32")]
    parts += [_peers(rows, notes, family) for family in dict.fromkeys(r["arch"] for r in rows if "peer_fill" in r)]
    parts.append(_errors(rows, notes))
    return "\n".join(filter(None, parts))


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in body]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]) + "\n" if lines else ""


def _kernels(rows: Sequence[Record], dtype: str) -> str:
    """A kernel on each family: its most registers and the fewest programs that fit, over all its shapes.

    The shares of bytes in accesses of 16 are those of its first shape, the least of the families of CUDA.
    """
    found = [row for row in rows if row.get("dtype") == dtype and "ctas_stated" in row]
    families = list(dict.fromkeys(row["arch"] for row in found))
    body = []
    for kernel in dict.fromkeys(row["ours_name"] for row in found):
        mine = [row for row in found if row["ours_name"] == kernel]
        cells = [_cell([row for row in mine if row["arch"] == family]) for family in families]
        first = [row for row in mine if row["shape"] == mine[0]["shape"] and row["arch"] != "gfx942"]
        wide = [min(row[f"wide_{of}_bytes"] for row in first or mine) for of in ("loaded", "stored")]
        body.append([f"`{kernel}`", *cells, *(f"{share:.0%}" for share in wide)])
    return _table([dtype, *families, "wide loads", "wide stores"], body)


def _cell(rows: Sequence[Record]) -> str:
    if not rows:
        return ""
    registers, ctas = max(row["registers"] for row in rows), min(row["ctas"] for row in rows)
    spills, mma = max(row["spill_stores"] for row in rows), max(row["mma"] for row in rows)
    said = f"{registers}, {ctas}" + (f", mma {mma}" if mma else "")
    return f"{said}, **spills {spills}**" if spills else said


def _peers(rows: Sequence[Record], notes: Sequence[Record], family: str) -> str:
    """Shape and direction by contender: registers, programs that fit, spilled bytes, how full the GPU gets."""
    found = [row for row in rows if row.get("arch") == family and "peer_fill" in row]
    names = list(dict.fromkeys(row["peer_name"] for row in found))
    body = []
    for case in dict.fromkeys(row["case"] for row in found):
        here = {row["peer_name"]: row for row in found if row["case"] == case}
        first = next(iter(here.values()))
        reasons = {note["ours_name"]: note["reason"] for note in notes if note["case"] == case}
        cells = [_taken(here[name], "peer") if name in here else reasons.get(name, "") for name in names]
        body.append([f"{first['shape']} {first['direction']}", _taken(first, "ours"), *cells])
    return _table([family, "ours", *names], body)


def _taken(row: Record, who: str) -> str:
    spills = row[f"{who}_spill_stores"], row[f"{who}_spill_loads"]
    said = f"{row[f'{who}_registers']}, {row[f'{who}_ctas']}, {row[f'{who}_fill']:.0%}"
    return f"{said}, **spills {spills[0]}/{spills[1]}**" if any(spills) else said


def _errors(rows: Sequence[Record], notes: Sequence[Record]) -> str:
    """Case by contender: the largest error in steps of the dtype."""
    found = [row for row in rows if row["unit"] == "steps"]
    names = list(dict.fromkeys(row["peer_name"] for row in found))
    body = []
    for case in dict.fromkeys(row["case"] for row in found):
        here = {row["peer_name"]: row for row in found if row["case"] == case}
        reasons = {note["ours_name"]: note["reason"] for note in notes if note["case"] == case}
        cells = [f"{here[name]['peer']:.3g}" if name in here else reasons.get(name, "") for name in names]
        body.append([case, f"{next(iter(here.values()))['ours']:.3g}", *cells])
    return _table(["error", "ours", *names], body)


if __name__ == "__main__":
    sys.stdout.write(tables(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
