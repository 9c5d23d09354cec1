"""The contract of its kind, run on every installed component: ours and strangers' alike."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pytest

from kolors_kernel import ComponentConfig, discover
from kolors_kernel.kinds import __dict__ as everything_in_kinds
from kolors_kernel.testing import CONTRACTS, ComponentContract


def contract_of(cls: type[ComponentConfig]) -> type[ComponentContract[Any]]:
    """Return a test class whose every test sees a `tiny()` made anew."""
    contract = CONTRACTS.get(cls.kind, ComponentContract)
    name = f"Test_{cls.kind}_{cls.model_fields['type'].default}"
    tiny = cached_property(lambda self: cls.tiny())
    made = type(name, (contract,), {"config": tiny, "__module__": __name__})
    return pytest.mark.slow(made) if cls.kind == "recipe" else made


globals().update({made.__name__: made for made in map(contract_of, discover().components.values())})


def test_every_kind_of_the_kernel_has_a_contract() -> None:
    kinds = {cls.kind for cls in everything_in_kinds.values() if isinstance(cls, type) and hasattr(cls, "kind")}
    assert kinds == set(CONTRACTS)


def test_every_installed_plugin_works() -> None:
    assert [f"{p.name}: {p.problem}" for p in discover().plugins.values() if p.problem] == []
