from __future__ import annotations

import argparse

from kolors_kernel import cli

FLAGS = {
    "plugins": set(),
    "components": {"--json"},
    "describe": set(),
    "check": {"--set"},
    "graph": {"--set"},
    "run": {"--set", "--out"},
}


def test_the_command_has_these_flags_and_grows_no_others() -> None:
    commands = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    found = {name: {o for a in made._actions for o in a.option_strings} for name, made in commands.items()}
    assert {name: options - {"-h", "--help"} for name, options in found.items()} == FLAGS
