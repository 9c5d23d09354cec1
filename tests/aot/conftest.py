"""Every row of the shipped tables of launches, compiled for its family of GPUs without one.

Triton compiles or interprets for the life of a process, so these tests have one of their own: `make kernels`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from kolors_ops.operators import INTERPRETED
from kolors_ops.table import Row, table_at

from benchmarks.aot.figures import Figures
from benchmarks.aot.launches import Planned, compiled, op_modules, planned

if INTERPRETED:
    raise pytest.UsageError("TRITON_INTERPRET is set, and these tests compile: run pytest tests/aot without it")

ROWS = table_at("").rows
DTYPES = {16: "bfloat16", 32: "float32"}
"""What stands for the rows of each size of element; the bench compiles float16 too."""
Compiled = dict[str, list[tuple[Planned, Figures | str]]]


def name_of(row: Row) -> str:
    """Return what a row is called in the names of tests."""
    return "-".join(filter(None, (row.kernel, row.family, str(row.bits), str(row.width), row.case)))


def one_of_each(launches: Iterator[Planned]) -> list[Planned]:
    """Return, for each row, one launch of each set of constants, absent arguments and dtypes; of 32 bits only one.

    Which integers are multiples of 16 makes further binaries, that `python -m benchmarks aot` compiles too.
    """
    found: dict[tuple[str, str], Planned] = {}
    for each in launches:
        found.setdefault((name_of(each.row), each.noted.constants if each.row.bits == 16 else ""), each)
    return list(found.values())


@pytest.fixture(scope="session")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Return what each row's launches become, by the row's name."""
    cache = os.environ.get("TRITON_CACHE_DIR") or str(tmp_path_factory.mktemp("compiled"))
    everything = planned(op_modules(), list(DTYPES.values()))
    launches = one_of_each(each for each in everything if isinstance(each, Planned))
    found: Compiled = {name_of(row): [] for row in ROWS}
    for each, figures in compiled(launches, cache_dir=cache):
        found[name_of(each.row)].append((each, figures))
    return found
