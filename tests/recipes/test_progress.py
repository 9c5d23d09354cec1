from __future__ import annotations

import io
import logging
import sys

import pytest
from kolors_recipes import progress
from kolors_recipes.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO), Progress("drawing", 4) as shown:
        shown.advance(by=3)
        shown.advance("the last", by=1)
    assert "drawing" in terminal.getvalue() and "4/4" in terminal.getvalue()
    assert not caplog.messages


def test_anything_else_sees_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with caplog.at_level(logging.INFO), Progress("drawing", 4, done=1) as shown:
        shown.advance("half way")
        shown.advance(by=2)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
    assert caplog.messages[0].startswith("drawing: 2 of 4") and caplog.messages[0].endswith("half way")
    assert caplog.messages[-1].startswith("drawing: 4 of 4")


def test_work_that_failed_is_not_reported_as_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO), pytest.raises(RuntimeError), Progress("drawing", 4) as shown:
        shown.advance()
        raise RuntimeError
    assert caplog.messages == []


def test_what_passes_says_nothing_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO), Progress("denoise", 4, passing=True) as shown:
        shown.advance(by=4)
    assert not caplog.messages
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with caplog.at_level(logging.INFO), Progress("denoise", 4, passing=True) as shown:
        shown.advance()
    assert len(caplog.messages) == 1


def test_slow_steps_are_told_by_how_long_each_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    clock = iter([0.0, 60.0, 60.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO), Progress("denoise", 50, passing=True) as shown:
        shown.advance(by=2)
    assert caplog.messages == ["denoise: 2 of 50, 30 seconds each"]
