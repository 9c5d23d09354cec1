from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from kolors_kernel import BuildContext, ComponentConfig, Registry, cli
from kolors_kernel.errors import DataError, RunError
from kolors_kernel.graph import Graph, step
from kolors_kernel.kinds import RecipeConfig
from kolors_kernel.registry import Plugin

FLAGS = {
    "": {"-h", "--help"},
    "plugins": {"-h", "--help"},
    "components": {"-h", "--help", "--json"},
    "describe": {"-h", "--help", "kind", "type"},
    "check": {"-h", "--help", "--set", "recipe"},
    "graph": {"-h", "--help", "--set", "recipe"},
    "run": {"-h", "--help", "--set", "--out", "recipe"},
}
"""The command line is frozen: a new knob is a setting of a component, not a flag."""


@step(writes="figure")
def ponder(seed: Seed) -> Figure:  # noqa: F821
    return seed


class Play(RecipeConfig):
    """Does as it is told.

    And explains itself
      at length.
    """

    type: Literal["play"] = "play"
    seed: int = 3
    """What the figure is."""
    end: Literal["well", "run_error", "data_error", "disk", "interrupt", "kill", "bug", "warn"] = "well"
    """How it ends."""
    nothing: Any = None
    """Anything at all."""

    def graphs(self) -> Mapping[str, Graph]:
        return {"play": Graph([ponder], inputs=["seed"], outputs=["figure"])}

    def build(self, ctx: BuildContext) -> Any:
        return Job(self, ctx)


class Mute(Play):
    type: Literal["mute"] = "mute"  # type: ignore[assignment]


class Job:
    def __init__(self, config: Play, ctx: BuildContext) -> None:
        self.config, self.ctx, self.graphs = config, ctx, config.graphs()

    def run(self) -> Mapping[str, float]:
        logging.getLogger("play").info("step 1 of 1")
        if self.config.end == "run_error":
            raise RunError("the loss is not finite at step 7")
        if self.config.end == "data_error":
            raise DataError("chunk 3 is damaged\nchunk 4 is missing")
        if self.config.end == "disk":
            raise OSError(28, "No space left on device", "checkpoint")
        if self.config.end == "interrupt":
            raise KeyboardInterrupt
        if self.config.end == "kill":
            signal.raise_signal(signal.SIGTERM)
        if self.config.end == "warn":
            warnings.warn("the prompt was cut", stacklevel=1)
        return {"figure": float(self.config.seed)}


@pytest.fixture(autouse=True)
def one_plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Put a registry of our own in the place of the discovered one, and set back what a run changes of the process."""
    classes: list[type[ComponentConfig]] = [Play, Mute]
    components = {("recipe", cls.model_fields["type"].default): cls for cls in classes}
    provided = dict.fromkeys(components, "theatre")
    plugins = {
        "theatre": Plugin("theatre", "kolors_theatre", "kolors-kernel"),
        "ruin": Plugin("ruin", "kolors_ruin", "ruins", "ImportError: no stones"),
    }
    registry = Registry(plugins, components, provided, (tmp_path,))
    (tmp_path / "tragedy.yaml").write_text("type: play\n")
    monkeypatch.setattr(cli, "discover", lambda: registry)
    monkeypatch.setattr("kolors_kernel.recipe_file.discover", lambda: registry)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    chosen = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {"": parser, **chosen.choices}


def test_the_flags_are_frozen() -> None:
    found = {
        name: {flag for a in each._actions for flag in (a.option_strings or [a.dest]) if flag != "==SUPPRESS=="}
        for name, each in parsers(cli._parser()).items()
    }
    found[""] -= {"command"}
    assert found == FLAGS


def test_a_shortened_flag_is_not_a_flag() -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["components", "--js"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("arguments", [[], ["dance"], ["check"], ["describe", "recipe"], ["run", "tragedy", "--fast"]])
def test_a_command_line_that_is_wrong_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize("name", FLAGS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"] if name else ["--help"])
    assert stopped.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 3


def test_plugins_are_listed_with_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["theatre", "kolors_theatre", "kolors-kernel", "2", "components"],
        ["ruin", "kolors_ruin", "ruins", "not", "in", "use:", "ImportError:", "no", "stones"],
    ]


def test_components_are_listed_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["components"]) == 0
    assert "Does as it is told." in capsys.readouterr().out
    assert cli.main(["components", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"kind": "recipe", "type": "mute", "plugin": "theatre", "summary": ""},
        {"kind": "recipe", "type": "play", "plugin": "theatre", "summary": "Does as it is told."},
    ]


def test_describe_prints_every_setting_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["describe", "recipe", "play"]) == 0
    text = capsys.readouterr().out
    assert "recipe play, from plugin theatre\n\nDoes as it is told.\n\nAnd explains itself\n  at length." in text
    assert "  seed: int, default 3\n      What the figure is.\n" in text
    assert '  device: text, default "cpu"\n' in text
    assert "  nothing: Any, default null\n" in text
    assert cli.main(["describe", "recipe", "mute"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recip", "play"], "error: no kind is called 'recip'. Known: recipe"),
        (
            ["recipe", "plya"],
            "error: no recipe is called 'plya'; did you mean 'play'? Known: mute, play (plugin 'ruin'",
        ),
    ],
)
def test_describing_what_is_not_there_names_what_is(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["describe", *arguments]) == 2
    assert capsys.readouterr().err.startswith(said)


def test_check_says_that_a_recipe_is_right_or_each_thing_that_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "tragedy"]) == 0
    assert capsys.readouterr().out == "tragedy: a valid play recipe\n"
    assert cli.main(["check", "tragedy", "--set", "seed=x", "--set", "ends=1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: --set: ") for line in lines)


def test_graph_prints_steps_ports_and_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["graph", "tragedy"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines() == [
        "play",
        "inputs   seed",
        "  ponder  seed -> figure: Figure",
        "outputs  figure",
        "builds   -",
        "",
    ]


def test_a_run_prints_its_figures_and_writes_its_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own would keep the command from setting up its own
    assert cli.main(["run", "tragedy", "--set", "seed=5"]) == 0
    assert capsys.readouterr().out.splitlines() == ["step 1 of 1", "figure: 5", f"results in {Path('runs/tragedy')}"]
    assert cli.main(["run", "runs/tragedy/recipe.yaml", "--out", "again"]) == 0
    assert "figure: 5" in capsys.readouterr().out
    assert (tmp_path / "again/recipe.yaml").read_text() == (tmp_path / "runs/tragedy/recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("run_error", 1, "error: the loss is not finite at step 7\n"),
        ("data_error", 2, "error: chunk 3 is damaged\nerror: chunk 4 is missing\n"),
        ("disk", 1, "error: [Errno 28] No space left on device: 'checkpoint'\n"),
        ("interrupt", 130, "stopped; what was finished is kept\n"),
        ("kill", 143, "error: stopped by SIGTERM; what was finished is kept\n"),
        ("warn", 0, "warning: the prompt was cut\n"),
    ],
)
def test_the_exit_code_says_whose_fault_it_was(
    end: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(["run", "tragedy", "--set", f"end={end}"]) == code
    assert capsys.readouterr().err == said


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").touch()
    assert cli.main(["run", "tragedy", "--out", "taken"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


PROGRAM = [sys.executable, "-c", "import sys; from kolors_kernel.cli import main; sys.exit(main())"]


def test_a_letter_that_the_terminal_cannot_show_is_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    monkeypatch.setattr(cli, "_summary", lambda _: "画 one")
    assert cli.main(["components"]) == 0
    assert b"\\u753b one" in written.getvalue()


def test_a_reader_that_stops_reading_is_no_error() -> None:
    with subprocess.Popen([*PROGRAM, "components"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stderr is not None
        program.stdout.close()
        said = program.stderr.read()
    assert (program.returncode, said) == (0, b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_a_run_ends_it_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "kolors_sleeper.py").write_text(
        """
import time
from typing import Literal
from kolors_kernel import hookimpl
from kolors_kernel.kinds import RecipeConfig

class Sleep(RecipeConfig):
    \"\"\"Sleeps.\"\"\"

    type: Literal["sleep"] = "sleep"

    def graphs(self):
        return {}

    def build(self, ctx):
        return self

    def run(self):
        print("asleep", flush=True)
        time.sleep(60)

@hookimpl
def kolors_components():
    return [Sleep]
"""
    )
    info = tmp_path / "kolors_sleeper-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kolors-sleeper\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kolors.v1]\nsleeper = kolors_sleeper\n")
    (tmp_path / "sleep.yaml").write_text("type: sleep\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [*PROGRAM, "run", "sleep.yaml"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that a script runs in the background ignores Ctrl-C, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as program:
        assert program.stdout is not None and program.stderr is not None
        assert program.stdout.readline() == "asleep\n"
        time.sleep(0.05)
        program.send_signal(number)
        said = program.stderr.read()
    assert program.returncode == code
    assert "what was finished is kept" in said
    assert "Traceback" not in said
    assert (tmp_path / "runs/sleep/recipe.yaml").exists()
