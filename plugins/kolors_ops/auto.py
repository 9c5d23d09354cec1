"""Choosing among implementations of one op, call by call."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Generic, ParamSpec, Protocol, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
logger = logging.getLogger(__name__)


class Op(Protocol[P, R]):
    """What every kind of op has in common: a call, and a question whether the call can be done."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do the op. Raises ValueError with the reason when it refuses."""

    def refuses(self, *args: P.args, **kwargs: P.kwargs) -> str | None:
        """Say why this call cannot run here, or return None."""


class AutoOp(Generic[P, R]):
    """The first of several implementations that does not refuse the call.

    `report` says which of them ran and why others did not. Each reason is logged too, once in the life of this object.
    """

    def __init__(self, kind: str, choices: Sequence[tuple[str, Op[P, R]]]) -> None:
        self.kind = kind
        self.choices = tuple(choices)
        self._ran: dict[str, None] = {}  # in the order they first ran
        self._told: dict[tuple[str, str], None] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do the op by the first choice that takes it. Raises ValueError when every one refuses."""
        chosen, passed_over = self._choose(*args, **kwargs)
        for name, reason in passed_over:
            if (name, reason) not in self._told:
                self._told[name, reason] = None
                if not torch.compiler.is_compiling():  # it cannot see into loggers
                    logger.info("%s '%s' is passed over: %s", self.kind, name, reason)
        if chosen is None:
            raise ValueError(f"no {self.kind} takes this call: {_listed(passed_over)}")
        name, op = chosen
        self._ran[name] = None
        return op(*args, **kwargs)

    def report(self) -> str:
        """Say which choices have run so far, and which were passed over and why."""
        over = f" (passed over: {_listed(list(self._told))})" if self._told else ""
        return (", ".join(self._ran) or "nothing has run yet") + over

    def refuses(self, *args: P.args, **kwargs: P.kwargs) -> str | None:
        """Say why every choice refuses the call, or return None; a list that ends at a reference never refuses."""
        chosen, passed_over = self._choose(*args, **kwargs)
        return _listed(passed_over) if chosen is None else None

    def _choose(self, *args: P.args, **kwargs: P.kwargs) -> tuple[tuple[str, Op[P, R]] | None, list[tuple[str, str]]]:
        """Return the first op that takes the call, with its name, or None, and those before it with their reason."""
        passed_over: list[tuple[str, str]] = []
        for name, op in self.choices:
            reason = op.refuses(*args, **kwargs)
            if reason is None:
                return (name, op), passed_over
            passed_over.append((name, reason))
        return None, passed_over


def _listed(passed_over: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in passed_over)
