"""Which rows of a table the models' calls use, and whether those calls come out right with others in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kolors_ops.table import Row, Table, lent
from kolors_ops.trials import Draw, Judge, Tape, Trial, implementation
from kolors_ops.tuning.log import key_of

TRIALS: tuple[Trial, ...] = (
    Trial("attention", (2, 10, 4096, 4096, 64), calls=10),
    Trial("attention", (2, 20, 1024, 1024, 64), calls=60),
    Trial("attention", (2, 10, 4096, 256, 64), calls=10),
    Trial("attention", (2, 20, 1024, 256, 64), calls=60),
    Trial("attention", (2, 20, 1024, 256, 64), "bias", calls=60),
    Trial("attention", (2, 20, 1024, 77, 64)),
    *(
        Trial("group_norm_silu", (2, channels, side, side), form, calls)
        for form in ("", "channels_last")
        for channels, side, calls in (
            (320, 128, 8),
            (640, 128, 2),
            (960, 128, 1),
            (640, 64, 6),
            (1280, 32, 10),
            (2560, 32, 2),
            (640, 16, 1),
            (1280, 16, 1),
        )
    ),
    Trial("attention", (2, 10, 1024, 1024, 128)),
    Trial("attention", (2, 10, 1024, 77, 128), "bias"),
    Trial("geglu", (2, 4096, 5120), calls=10),
    Trial("geglu", (2, 1024, 10240), calls=60),
    Trial("add_layer_norm", (2, 4096, 640), calls=20),
    Trial("add_layer_norm", (2, 1024, 1280), calls=120),
    Trial("add_layer_norm", (2, 1024, 1280), "alone", calls=60),
    Trial("add_layer_norm", (2, 1024, 4096)),
    Trial("rms_norm", (512, 4096), calls=56),
    Trial("rms_norm", (512, 8192)),
    Trial("rotary", (512, 34, 128), calls=28),
    Trial("rotary", (512, 16, 256)),
    *(
        Trial("quantized_linear", (rows, *layer), f"{form}{bias}", calls=28)
        for rows in (24, 96, 1024)
        for form in ("8 bits", "4 bits by 64")
        for layer, bias in (
            ((4096, 4608), " bias"),
            ((4096, 4096), ""),
            ((4096, 27392), ""),
            ((13696, 4096), ""),
        )
    ),
)
"""Of the SDXL U-Net for a picture of 1024 x 1024 and a batch of two, and of ChatGLM3, with their number in a forward,
and once each, of what the table has rows for besides: a smaller picture, wider heads and rows. What goes through layers
of integers are the tokens of a prompt, of a good one, or of several texts.
"""


@dataclass(frozen=True)
class Use:
    """A call that uses a row, on the way forward or back."""

    trial: Trial
    backward: bool


class Watched(Table):
    """A table that keeps which rows were needed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__(rows)
        self.needed: dict[str, None] = {}

    def need(self, kernel: str, family: str, bits: int, width: int, case: str = "") -> Row:
        """Return the narrowest row that is wide enough. Raises ValueError when there is none."""
        row = super().need(kernel, family, bits, width, case)
        self.needed[key_of(row)] = None
        return row


def uses_of(
    rows: Sequence[Row], trials: Sequence[Trial], device: torch.device, bits: Sequence[int]
) -> dict[str, list[Use]]:
    """Return by the key of each row which calls use it, as is seen by making each call once; some are refused."""
    found: dict[str, list[Use]] = {}
    for trial in trials:
        for dtype in (_DTYPES[each] for each in bits):
            arguments = trial.arguments(Draw(device, dtype))
            watched = Watched(rows)
            with _op(trial, watched) as op:
                if op.func.refuses(*arguments, **trial.named) is not None:
                    continue
                tape = Tape(trial.kind, op, arguments)
                for backward in (False, True):
                    for key in watched.needed:
                        found.setdefault(key, []).append(Use(trial, backward))
                    watched.needed.clear()
                    if not backward:
                        tape.gradients()
    return found


class Proof:
    """The calls that use a row: right or not with a table, and their time."""

    def __init__(self, uses: Sequence[Use], device: torch.device, bits: int) -> None:
        self._uses, self._draw = uses, Draw(device, _DTYPES[bits])
        small = dict.fromkeys(use.trial.to_judge() for use in uses)
        self._judges = [(trial, Judge(trial, self._draw)) for trial in small]

    def against(self, table: Table) -> str | None:
        """Say in which call the op, with the rows of this table, is wrong or cannot be launched; or return None."""
        from triton.errors import TritonError

        for trial, judge in self._judges:
            with _op(trial, table) as op:
                try:
                    wrong = judge.verdict(op.func).wrong
                except (TritonError, ValueError) as error:
                    wrong = f"{type(error).__name__}: {str(error).strip()}"
            if wrong:
                return f"{trial}: {wrong}"
        return None

    def time(self, table: Table, milliseconds: Callable[[Callable[[], object]], float]) -> float:
        """Return the milliseconds that a model's forward, or its way back, spends in these calls."""
        spent = 0.0
        for use in self._uses:
            arguments = use.trial.arguments(self._draw)
            with _op(use.trial, table) as op:
                if use.backward:
                    work: Callable[[], object] = Tape(use.trial.kind, op, arguments).gradients
                else:
                    work = torch.no_grad()(partial(op, *arguments))
                spent += use.trial.calls * milliseconds(work)
        return spent


@contextmanager
def _op(trial: Trial, table: Table) -> Iterator[Any]:
    """The kernels of the op with the rows of a table, as a partial with what the call says by name."""
    with lent(table) as name:
        op = implementation(trial.kind, "triton")
        op.table = name
        yield trial.asks(op)


_DTYPES = {16: torch.bfloat16, 32: torch.float32}
