from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from kolors_kernel import errors
from kolors_kernel.errors import Interrupted, KolorsError, MissingDependency, RunError, needs


def test_only_a_failed_run_is_no_fault_of_the_input() -> None:
    found = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, KolorsError)]
    assert len(found) > 8
    assert [cls for cls in found if cls.exit_code != 2] == [RunError]


def test_a_signal_ends_with_its_own_code_and_name() -> None:
    stopped = Interrupted(signal.SIGTERM, "step 12 is kept")
    assert stopped.exit_code == 143
    assert str(stopped) == "stopped by SIGTERM; step 12 is kept"


def test_a_missing_package_says_how_to_install_it() -> None:
    with (
        pytest.raises(MissingDependency, match=r"'figure' needs the package 'no_such_thing'.*kolors-kernel\[plot\]"),
        needs("no_such_thing", extra="plot", wanted_by="figure"),
    ):
        import no_such_thing.inside  # type: ignore[import-not-found]  # noqa: F401


def test_a_package_that_breaks_inside_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import another_thing_that_is_missing")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="another_thing"), needs("half_there", extra="x", wanted_by="y"):
        import half_there  # type: ignore[import-not-found]  # noqa: F401
    assert "half_there" not in sys.modules
