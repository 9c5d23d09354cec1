"""The `kolors` command. Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 128 + signal if stopped."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from kolors_kernel.component import BuildContext, ComponentConfig
from kolors_kernel.errors import Interrupted, KolorsError, RecipeError
from kolors_kernel.kinds import RecipeConfig
from kolors_kernel.recipe_file import load_recipe, parse_setting, write_recipe
from kolors_kernel.registry import discover


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # a letter that a terminal lacks is spelled out, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
        sys.stdout.flush()
    except KolorsError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; what was finished is kept", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of a pipe has seen enough; nothing may be flushed to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a folder that is not writable
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    plain: dict[str, Any] = {"allow_abbrev": False}
    parser = argparse.ArgumentParser(
        "kolors", description="Kolors as a microkernel: recipes built from plugins.", **plain
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary, **plain)
        made.set_defaults(command=function)
        return made

    def takes_recipe(name: str, function: Any, summary: str) -> argparse.ArgumentParser:
        made = command(name, function, summary)
        made.add_argument("recipe", help="a file ending in .yaml, or the name of a shipped recipe")
        made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in stages.0.steps=10")
        return made

    command("plugins", _plugins, "list the installed plugins, broken ones with their error")
    listing = command("components", _components, "list the components of every plugin, recipes' types among them")
    listing.add_argument("--json", action="store_true", help="print objects with kind, type, plugin, summary")
    describing = command("describe", _describe, "print every setting of a component")
    describing.add_argument("kind")
    describing.add_argument("type")
    takes_recipe("check", _check, "validate a recipe without loading a weight")
    takes_recipe("graph", _graph, "print a recipe's steps, their ports, and the parts to be built")
    running = takes_recipe("run", _run, "run a recipe")
    running.add_argument("--out", type=Path, help="where results go; default: runs/NAME")
    return parser


def _plugins(options: argparse.Namespace) -> None:
    registry = discover()
    for plugin in registry.plugins.values():
        provided = sum(by == plugin.name for by in registry.provided_by.values())
        state = f"not in use: {plugin.problem}" if plugin.problem else f"{provided} component{'s' * (provided != 1)}"
        print(f"{plugin.name:<20} {plugin.module:<24} {plugin.distribution:<20} {state}")


def _components(options: argparse.Namespace) -> None:
    registry = discover()
    rows = [
        {"kind": kind, "type": name, "plugin": registry.provided_by[kind, name], "summary": _summary(cls)}
        for (kind, name), cls in sorted(registry.components.items())
    ]
    if options.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for row in rows:
        print(f"{row['kind']:<16} {row['type']:<24} {row['plugin']:<14} {row['summary']}")


def _describe(options: argparse.Namespace) -> None:
    registry = discover()
    if options.kind not in registry.kinds():
        raise RecipeError(f"no kind is called '{options.kind}'. Known: {', '.join(registry.kinds())}")
    try:
        cls = registry.find(options.kind, options.type)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    print(f"{options.kind} {options.type}, from plugin {registry.provided_by[options.kind, options.type]}\n")
    print(f"{inspect.cleandoc(cls.__doc__ or '')}\n\nsettings:")
    _print_settings(cls, "  ")


def _print_settings(cls: type[BaseModel], indent: str) -> None:
    for name, info in cls.model_fields.items():
        if name == "type" and issubclass(cls, ComponentConfig):
            continue
        default = "required" if info.is_required() else f"default {_shown_default(info)}"
        print(f"{indent}{name}: {_shown_type(info.annotation, info.metadata)}, {default}")
        for line in (info.description or "").splitlines():
            print(f"{indent}    {line}")
        for inner in _plain_settings(info.annotation):
            _print_settings(inner, indent + "    ")


def _plain_settings(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes inside an annotation that are not components, to be printed in place."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if issubclass(annotation, ComponentConfig) else [annotation]
    return [each for argument in get_args(annotation) for each in _plain_settings(argument)]


_WORDS = {"NoneType": "null", "Ellipsis": "...", "str": "text", "Path": "path"}
_LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of", "min_length": "of at least"}


def _shown_type(annotation: Any, notes: Sequence[Any] = ()) -> str:
    """Return a type in a reader's words: what it is, and the limits and remarks beside it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _shown_type(arguments[0], [*arguments[1:], *notes])
    if origin is None and isinstance(annotation, type) and issubclass(annotation, ComponentConfig):
        shown = f"{'an' if annotation.kind[0] in 'aeiou' else 'a'} {annotation.kind}"
    elif origin is None:
        name = getattr(annotation, "__name__", str(annotation))
        shown = _WORDS.get(name, name)
    else:
        name = getattr(origin, "__name__", str(origin))
        parts = [repr(each) if name == "Literal" else _shown_type(each) for each in arguments]
        shown = " | ".join(parts) if name in ("Literal", "Union", "UnionType") else f"{name}[{', '.join(parts)}]"
    limits = [f"{sign} {getattr(note, at)}" for note in notes for at, sign in _LIMITS.items() if hasattr(note, at)]
    remarks = [note for note in notes if isinstance(note, str)]
    return " ".join([shown, *filter(None, [" and ".join(limits)]), *remarks])


def _shown_default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    return json.dumps(to_jsonable_python(value, fallback=str), ensure_ascii=False)


def _summary(cls: type[ComponentConfig]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]


def _load(options: argparse.Namespace) -> RecipeConfig:
    return load_recipe(options.recipe, dict(parse_setting(text) for text in options.set))


def _check(options: argparse.Namespace) -> None:
    print(f"{options.recipe}: a valid {_load(options).type} recipe")


def _graph(options: argparse.Namespace) -> None:
    for name, graph in _load(options).graphs().items():
        print(f"{name}\n{graph.describe()}\n")


def _run(options: argparse.Namespace) -> None:
    recipe = _load(options)
    out = options.out or Path("runs") / Path(options.recipe).stem
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout, force=True)
    logging.raiseExceptions = False  # the reader of a pipe has seen enough; the run goes on
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    signal.signal(signal.SIGTERM, _stop)
    try:
        job = recipe.build(BuildContext(recipe.device, recipe.dtype, out))
        write_recipe(recipe, out / "recipe.yaml")
        for name, value in job.run().items():
            print(f"{name}: {value:g}")
        logging.info("results in %s", out)
    finally:
        logging.basicConfig(handlers=[], force=True)  # a caller in this process keeps no handler of ours


def _stop(number: int, frame: object) -> None:
    raise Interrupted(number, "what was finished is kept")
