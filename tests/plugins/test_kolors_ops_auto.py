from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from kolors_ops.attention.config import (
    AttentionAuto,
    AttentionReference,
)
from kolors_ops.auto import AutoOp
from kolors_ops.config import COMPONENTS
from kolors_ops.geglu.config import GEGLUAuto
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.errors import RecipeError
from kolors_kernel.kinds import AttentionConfig, GEGLUConfig, GroupNormSiLUConfig
from kolors_kernel.registry import Registry


class PickyGEGLU:
    """Refuses rows wider than it likes; otherwise gives ones, so that a test sees who answered."""

    def __init__(self, widest: int) -> None:
        self.widest = widest

    def __call__(self, x: Tensor) -> Tensor:
        if reason := self.refuses(x):
            raise ValueError(f"geglu 'picky' refuses: {reason}")
        return torch.ones(*x.shape[:-1], x.shape[-1] // 2)

    def refuses(self, x: Tensor) -> str | None:
        return f"rows of {x.shape[-1]} are wider than {self.widest}" if x.shape[-1] > self.widest else None


class Picky(GEGLUConfig):
    """A stranger's op."""

    type: Literal["picky"] = "picky"
    widest: int = 4
    """The widest row it takes."""

    def build(self, ctx: BuildContext) -> PickyGEGLU:
        return PickyGEGLU(self.widest)


STRANGERS = Registry({}, {(c.kind, str(c.model_fields["type"].default)): c for c in (*COMPONENTS, Picky)})


def read(kind: type[Any], data: dict[str, Any]) -> Any:
    return kind.model_validate(data, context={"registry": STRANGERS})


def test_auto_asks_in_the_order_given_and_takes_the_first_that_does_not_refuse() -> None:
    narrow, wide = torch.zeros(2, 4), torch.zeros(2, 6)
    auto = read(GEGLUConfig, {"type": "auto", "prefer": [{"type": "picky"}, {"type": "picky", "widest": 100}]})
    op = auto.build(BuildContext())
    assert [choice.widest for _, choice in op.choices[:2]] == [4, 100]
    assert op(narrow).eq(1).all()
    assert op(wide).eq(1).all()
    first = read(GEGLUConfig, {"type": "auto", "prefer": [{"type": "torch"}, {"type": "picky"}]}).build(BuildContext())
    assert first(narrow).eq(0).all()


def test_auto_ends_at_the_reference_whatever_is_preferred() -> None:
    for prefer in ([], [{"type": "picky"}]):
        op = read(GEGLUConfig, {"type": "auto", "prefer": prefer}).build(BuildContext())
        x = torch.randn(3, 8)
        assert op.refuses(x) is None
        torch.testing.assert_close(op(x), x[:, :4] * torch.nn.functional.gelu(x[:, 4:]))


def test_the_report_says_what_ran_and_why_the_rest_did_not() -> None:
    op = read(GEGLUConfig, {"type": "auto", "prefer": [{"type": "picky"}]}).build(BuildContext())
    assert op.report() == "nothing has run yet"
    op(torch.zeros(2, 4))
    assert op.report() == "picky"
    for width in (6, 6, 4, 8):
        op(torch.zeros(2, width))
    over = "picky: rows of 6 are wider than 4; picky: rows of 8 are wider than 4"
    assert op.report() == f"picky, reference (passed over: {over})"


def test_each_new_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    op = read(GEGLUConfig, {"type": "auto", "prefer": [{"type": "picky"}]}).build(BuildContext())
    with caplog.at_level(logging.INFO, logger="kolors_ops"):
        op(torch.zeros(2, 4))
        assert caplog.messages == []
        for width in (6, 6, 8, 6):
            op(torch.zeros(2, width))
    assert caplog.messages == [
        "geglu 'picky' is passed over: rows of 6 are wider than 4",
        "geglu 'picky' is passed over: rows of 8 are wider than 4",
    ]
    assert {r.levelno for r in caplog.records} == {logging.INFO}


def test_two_autos_of_one_process_keep_their_own_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="kolors_ops")
    for _ in range(2):
        read(GEGLUConfig, {"type": "auto", "prefer": [{"type": "picky"}]}).build(BuildContext())(torch.zeros(1, 6))
    assert len(caplog.messages) == 2


def test_an_op_named_outright_raises_where_auto_would_pass_it_over() -> None:
    named = read(GEGLUConfig, {"type": "picky"}).build(BuildContext())
    with pytest.raises(ValueError, match="'picky' refuses: rows of 6 are wider than 4"):
        named(torch.zeros(2, 6))


def test_an_auto_without_a_reference_raises_with_every_reason() -> None:
    op = AutoOp("geglu", [("small", PickyGEGLU(2)), ("smaller", PickyGEGLU(1))])
    x = torch.zeros(2, 6)
    with pytest.raises(ValueError, match="small: rows of 6 are wider than 2; smaller: rows of 6 are wider than 1"):
        op(x)
    assert op.refuses(x) == "small: rows of 6 are wider than 2; smaller: rows of 6 are wider than 1"


def test_an_error_inside_a_chosen_op_is_not_taken_for_a_refusal() -> None:
    op = GEGLUAuto().build(BuildContext())
    with pytest.raises(ValueError, match="odd"):
        op(torch.zeros(2, 5))


def test_the_mask_reaches_the_chosen_op_by_position_and_by_name() -> None:
    op = AttentionAuto().build(BuildContext())
    q, k, v = (torch.randn(1, 2, 3, 4) for _ in range(3))
    mask = torch.tensor([0.0, -torch.inf, 0.0])
    assert torch.equal(op(q, k, v, mask), op(q, k, v, mask=mask))
    assert not torch.equal(op(q, k, v, mask), op(q, k, v))


@pytest.mark.parametrize("kind", [AttentionConfig, GroupNormSiLUConfig, GEGLUConfig])
def test_every_auto_is_the_same_after_being_written_and_read(kind: type[Any]) -> None:
    auto = read(kind, {"type": "auto", "prefer": [{"type": "reference"}, {"type": "auto", "prefer": []}]})
    assert read(kind, auto.model_dump(mode="json")) == auto
    assert auto.model_dump(mode="json")["prefer"][1] == {"type": "auto", "prefer": []}


def test_the_defaults_prefer_kernels_then_what_is_fastest() -> None:
    prefer = {auto.kind: [c.type for c in auto().prefer] for auto in COMPONENTS if "prefer" in auto.model_fields}
    assert prefer["attention"] == ["triton", "blocked", "recomputed", "sdpa"]
    assert prefer["group_norm_silu"] == prefer["geglu"] == ["triton", "torch"]
    assert {kind: "triton" in types for kind, types in prefer.items()} == dict.fromkeys(prefer, True)
    assert AttentionReference() not in AttentionAuto().prefer


def test_a_table_that_is_none_is_said_when_the_op_is_built(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('[{"kernel": "geglu_forward", "warp": 4}]')
    for cls in (cls for cls in COMPONENTS if "triton" in cls.model_fields["type"].default):
        with pytest.raises(RecipeError, match=r"mine\.json is not a table of launches: 0\.family: Field required"):
            cls(table=tmp_path / "mine.json").build(BuildContext())
