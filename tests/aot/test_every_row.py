from __future__ import annotations

import re

import pytest
from kolors_ops.table import FAMILIES, Row

from benchmarks.aot.figures import Figures
from benchmarks.aot.launches import Planned

from .conftest import ROWS, Compiled, name_of

WIDE = 0.8
"""The least share of the bytes of a picture or of tokens, 16 bits an element, that moves 16 bytes at a time."""
BY_THE_WAY = re.compile("combine")
"""Kernels that only put statistics together: a thousandth of the bytes, and where they lie depends on the groups."""
OTHER_MODELS = re.compile("8 heads of")
"""Shapes that neither the U-Net nor the text encoder has: they must be right, and need not be fast."""
each_row = pytest.mark.parametrize("row", ROWS, ids=name_of)


def binaries_of(row: Row, binaries: Compiled) -> list[tuple[Planned, Figures]]:
    found = []
    for each, figures in binaries[name_of(row)]:
        assert not isinstance(figures, str), f"{each.shape}: {figures}"
        found.append((each, figures))
    assert found, "no sample of an op uses this row"
    return found


def test_there_are_rows_for_every_family() -> None:
    assert {row.family for row in ROWS} == set(FAMILIES.values())


@each_row
def test_nothing_is_spilled(row: Row, binaries: Compiled) -> None:
    for each, figures in binaries_of(row, binaries):
        # Registers say nothing of it: ptxas reports 32 for kernels that spill kilobytes.
        assert (figures.spill_stores, figures.spill_loads, figures.local) == (0, 0, 0), each.shape


@each_row
def test_as_many_programs_fit_on_a_multiprocessor_as_the_row_states(row: Row, binaries: Compiled) -> None:
    for each, figures in binaries_of(row, binaries):
        assert figures.ctas >= row.ctas, f"{each.shape}: {figures.registers} registers, {figures.shared} bytes"


@each_row
def test_products_of_matrices_are_instructions_for_them(row: Row, binaries: Compiled) -> None:
    for each, figures in binaries_of(row, binaries):
        assert bool(figures.mma) >= bool(figures.dots_of_16_bits), each.shape


@pytest.mark.parametrize("row", [r for r in ROWS if r.bits == 16 and not BY_THE_WAY.search(r.kernel)], ids=name_of)
def test_loads_and_stores_are_as_wide_as_can_be(row: Row, binaries: Compiled) -> None:
    for each, figures in binaries_of(row, binaries):
        if OTHER_MODELS.search(each.shape):
            continue
        # Words are left out, which statistics are; where everything were words, nothing would be wide.
        assert figures.loads.wide and figures.loads.share_of_bytes >= WIDE, f"{each.shape}: {figures.loads}"
        # Of AMD's products of matrices a thread has four elements side by side, and stores them as they lie.
        if figures.stores.count > figures.stores.words and not (figures.mma and row.family == "gfx942"):
            assert figures.stores.share_of_bytes >= WIDE, f"{each.shape}: {figures.stores}"
