"""A component whose optional package is not installed is skipped, with the line that says how to install it."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from kolors_kernel.errors import MissingDependency


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    except MissingDependency as missing:
        pytest.skip(str(missing))
