"""The tables of docs/roofline.md, made from the rows of the bench."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

START, END = "<!-- begin: python -m benchmarks roofline -->", "<!-- end -->"
Records = Sequence[Mapping[str, Any]]


def write_tables(page: Path, records: Records, *, apart: Sequence[str]) -> None:
    """Put the tables of these rows between the marks of a page; `apart` are ops that stand below the sum."""
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    tail = rest.partition(END)[2]
    page.write_text(f"{head}{START}\n{tables(records, apart=apart)}{END}{tail}", encoding="utf-8")


def tables(records: Records, *, apart: Sequence[str]) -> str:
    """Return the tables as Markdown: each op, what the changes save, and each op at each shape.

    Of the ops apart, the first is the whole forward, and the last what stands around it in a step.
    """
    forward, shapes = ([r for r in records if r.get("unit") == unit] for unit in ("ms", "us"))
    lines = [*_of_ops(forward, last=apart), "", _of_step(forward, apart[0], apart[-1])]
    lines += ["", *_of_savings(forward, without=apart)]
    if shapes:
        lines += ["", *_of_shapes(shapes)]
    return "\n".join(lines) + "\n"


def _of_ops(records: Records, *, last: Sequence[str]) -> Iterator[str]:
    gpus = _names(records, "gpu")
    yield _line("op", "launches", "GB", "TFLOP", *(f"{gpu}, ms" for gpu in gpus))
    yield _line(*["---"] * (4 + len(gpus)))
    for op in sorted(_names(records, "op"), key=lambda op: op in last):
        mine = [r for r in records if r["op"] == op]
        figures = [_pair(mine[0], what, digits) for what, digits in (("launches", 0), ("gb", 2), ("tflop", 2))]
        yield _line(op, *figures, *(_change(r["peer"], r["ours"], 3) for r in mine))


def _of_step(records: Records, whole: str, step: str) -> str:
    pairs = zip(*([r for r in records if r["op"] == op] for op in (step, whole)), strict=True)
    shares = list(pairs)
    told = (f"{part['ours']:.4f} of {total['ours']:.1f} ms on {part['gpu']}" for part, total in shares)
    few, many = (one["ours_launches"] for one in shares[0])
    return f"{step[0].upper()}{step[1:]}: {few} launches beside {many} of a forward; {', '.join(told)}."


def _of_savings(records: Records, *, without: Sequence[str]) -> Iterator[str]:
    """Yield what is saved at most, and what share that is of the forward, which is the first op of those `without`."""
    gpus, whole = _names(records, "gpu"), [r["peer"] for r in records if r["op"] == without[0]]
    yield _line("at most saved", "launches", *(f"{gpu}, ms" for gpu in gpus))
    yield _line(*["---"] * (2 + len(gpus)))
    for op in sorted(_names(records, "op"), key=lambda op: op in without):
        mine = [r for r in records if r["op"] == op]
        if any(r["peer"] != r["ours"] for r in mine):
            saved = [(r["peer"] - r["ours"], total) for r, total in zip(mine, whole, strict=True)]
            figures = (f"{saving:.3f} ({saving / total:.1%})" for saving, total in saved)
            yield _line(op, f"{mine[0]['peer_launches'] - mine[0]['ours_launches']}", *figures)


def _of_shapes(records: Records) -> Iterator[str]:
    gpus = _names(records, "gpu")
    yield _line("op and shape", "calls", *(f"{gpu}, us" for gpu in gpus))
    yield _line(*["---"] * (2 + len(gpus)))
    for op in _names(records, "op"):
        mine = [r for r in records if r["op"] == op]
        yield _line(op, f"{mine[0]['calls']}", *(_change(r["peer"], r["ours"], 1) for r in mine))


def _names(records: Records, field: str) -> list[str]:
    return list(dict.fromkeys(r[field] for r in records))


def _pair(record: Mapping[str, Any], what: str, digits: int) -> str:
    return _change(record[f"peer_{what}"], record[f"ours_{what}"], digits)


def _change(before: float, after: float, digits: int) -> str:
    texts = [f"{figure:.{digits}f}" for figure in (before, after)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} → {texts[1]}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
