"""The table of launch configurations: for each kernel, on each family of GPUs, its block sizes, warps and stages.

It is frozen: no kernel is tuned while it is used, since block sizes decide the order of sums, and thereby the last
bits of a result. `kolors run tune` measures candidates on a GPU and writes a table of the same form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor

from kolors_kernel.errors import RecipeError

Bits: TypeAlias = Literal[16, 32]
SHIPPED = sorted(Path(__file__).parent.glob("*/launches*.json"))
"""Each op has its rows beside its kernels."""
FAMILIES: Mapping[str, str] = {
    "sm_80": "sm_80",
    "sm_86": "sm_89",  # the shared memory and the instructions of sm_89
    "sm_87": "sm_80",
    "sm_89": "sm_89",
    "sm_90": "sm_90",
    "sm_100": "sm_100",
    "sm_103": "sm_100",
    "sm_120": "sm_120",
    "sm_121": "sm_120",
    "gfx942": "gfx942",
}
"""The family of each architecture that the table was compiled for; any other is a family of its own."""
INTERPRETED_AS = "sm_80"
"""Whose rows Triton's interpreter runs, which has no architecture."""


class Row(BaseModel):
    """How one kernel is launched on one family of GPUs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kernel: str
    family: str
    bits: Bits
    """Of the elements of the inputs: 16 for float16 and bfloat16, 32 for float32."""
    width: PositiveInt
    """The widest rows, heads or groups that this is for; what they are the width of is said by the op."""
    case: str = ""
    """What else decides: a memory format, whether masks are needed."""
    blocks: Mapping[str, int]
    """The compile-time constants of the kernel by name."""
    warps: PositiveInt
    stages: PositiveInt = 1
    ctas: PositiveInt
    """How many programs fit on one multiprocessor (of CUDA) at least, by registers and shared memory."""


class Table:
    """Rows by kernel, family, bits and case."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(rows)
        self._found: dict[tuple[str, str, int, str], list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: row.width):
            self._found.setdefault((row.kernel, row.family, row.bits, row.case), []).append(row)

    def pick(self, kernel: str, family: str, bits: int, width: int, case: str = "") -> Row | None:
        """Return the narrowest row that is wide enough, or None."""
        for row in self._found.get((kernel, family, bits, case), ()):
            if row.width >= width:
                return row
        return None

    def need(self, kernel: str, family: str, bits: int, width: int, case: str = "") -> Row:
        """Return the narrowest row that is wide enough. Raises ValueError when there is none."""
        row = self.pick(kernel, family, bits, width, case)
        if row is None:
            raise ValueError(missing(kernel, family, bits, width, case))
        return row


def missing(kernel: str, family: str, bits: int, width: int, case: str = "") -> str:
    """Say which row there is not."""
    named = f"{kernel} ({case})" if case else kernel
    return f"the table of launches has no {named} for {family}, {bits} bits and a width of {width}"


def table_at(path: str) -> Table:
    """Return the table in a file, or for "" the one that ships; each is read once.

    Raises RecipeError when the file is not such a table.
    """
    if path not in _read:
        _read[path] = Table(row for file in ([Path(path)] if path else SHIPPED) for row in read_rows(file))
    return _read[path]


_read: dict[str, Table] = {}


@contextmanager
def lent(table: Table) -> Iterator[str]:
    """Have `table_at` know a table without a file, until the block ends, by the name that is given."""
    name = f"a table without a file, {id(table)}"
    _read[name] = table
    try:
        yield name
    finally:
        del _read[name]


def read_rows(path: Path) -> list[Row]:
    """Read a table's rows. Raises RecipeError when the file is not such a table."""
    try:
        return TypeAdapter(list[Row]).validate_json(path.read_bytes())
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RecipeError(f"{path} is not a table of launches: {where}: {first['msg']}") from None


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a table, a row in a line, whole or not at all."""
    lines = ",\n".join(json.dumps(row.model_dump(exclude_defaults=True)) for row in rows)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    temporary.replace(path)


def bits_of(x: Tensor) -> int:
    """Return the bits of an element of x."""
    return 8 * x.element_size()


def family_of(device: torch.device) -> str:
    """Return the family of GPUs that a device is of; on CPUs, that of which the interpreter runs the rows."""
    if device.type == "cpu":
        return INTERPRETED_AS
    if torch.version.hip:
        name = str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    else:
        known = torch.cuda.get_device_properties(device)  # which torch.compile can evaluate
        name = f"sm_{known.major}{known.minor}"
    return FAMILIES.get(name, name)
