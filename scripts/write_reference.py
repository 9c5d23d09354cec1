"""Write docs/reference, one page per kind, from the components that are installed with this project."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent

from kolors_kernel import cli, protocols
from kolors_kernel.component import ComponentConfig, is_kind, type_name
from kolors_kernel.errors import PluginError
from kolors_kernel.registry import Registry, discover

FOLDER = Path(__file__).resolve().parents[1] / "docs/reference"
DISTRIBUTION = "kolors-kernel"
GENERATED = "<!-- Written by `make docs`; do not edit. -->"


def pages(registry: Registry) -> dict[str, str]:
    """Return the text of every page by file name, strangers' components left out.

    Raises PluginError when a plugin of this project is not in use, since its components would vanish from the pages.
    """
    broken = [
        f"{p.name}: {p.problem}" for p in registry.plugins.values() if p.problem and p.distribution == DISTRIBUTION
    ]
    if broken:
        raise PluginError(f"the reference would be incomplete; {'; '.join(broken)}")
    ours = {
        key: cls
        for key, cls in registry.components.items()
        if registry.plugins[registry.provided_by[key]].distribution == DISTRIBUTION
    }
    kinds = sorted({kind for kind, _ in ours})
    written = {f"{kind}.md": _page(kind, {name: cls for (k, name), cls in ours.items() if k == kind}) for kind in kinds}
    rows = [
        f"| [{kind}]({kind}.md) | {_first_line(_kind_class(next(c for (k, _), c in ours.items() if k == kind)))} | "
        f"{', '.join(f'`{name}`' for k, name in sorted(ours) if k == kind)} |"
        for kind in kinds
    ]
    head = [
        GENERATED,
        "# Reference",
        "",
        "Every component that is installed with this project, by kind. Written from the",
    ]
    head += ["registry: `kolors describe KIND TYPE` prints the same for whatever is installed on your machine.", ""]
    return {"index.md": "\n".join([*head, "| kind | what it does | types |", "|---|---|---|", *rows, ""]), **written}


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Make `folder` hold these pages and no other."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in set(folder.glob("*.md")) - {folder / name for name in texts}:
        stale.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _page(kind: str, components: Mapping[str, type[ComponentConfig]]) -> str:
    declared = _kind_class(next(iter(components.values())))
    parts = [GENERATED, f"# {kind}", "", inspect.getdoc(declared) or "", "", *_promises(declared)]
    for name, cls in sorted(components.items()):
        parts += [f"## {kind} `{name}`", "", inspect.getdoc(cls) or "", "", *_settings(cls)]
    return "\n".join(parts)


def _promises(declared: type[ComponentConfig]) -> list[str]:
    """Return what the built object can do, from its Protocol's docstrings, or nothing for a kind that has none."""
    annotation = str(inspect.signature(declared.build).return_annotation) if hasattr(declared, "build") else ""
    promised = getattr(protocols, annotation.rpartition(".")[2], None)
    if promised is None:
        return []
    lines = [
        f"Its config is a `{declared.__module__}.{declared.__name__}`; what `build` makes can do this:",
        "",
        "```python",
    ]
    for name, method in vars(promised).items():
        if inspect.isfunction(method) and method.__module__ == protocols.__name__ and name != "__init__":
            signature = str(inspect.signature(method)).replace("'", "")
            text = f'"""{inspect.getdoc(method)}"""'
            lines += [f"def {name}{signature}:", indent(text, "    "), ""]
    return [*lines[:-1], "```", ""]


def _settings(cls: type[ComponentConfig]) -> list[str]:
    """Return what `kolors describe` prints, paths inside the plugin without the folder it is installed in."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(["describe", cls.kind, type_name(cls)])
    assert code == 0, f"kolors describe {cls.kind} {type_name(cls)} failed"
    text = printed.getvalue().partition("\nsettings:\n")[2].rstrip()
    package = sys.modules[cls.__module__.partition(".")[0]]
    text = text.replace(f"{Path(package.__path__[0]).parent}/", "")
    return ["```text", inspect.cleandoc(f"\n{text}"), "```", ""] if text else ["No settings.", ""]


def _kind_class(cls: type[ComponentConfig]) -> type[ComponentConfig]:
    """Return the class that stands for the whole kind of a component."""
    return next(c for c in cls.__mro__ if issubclass(c, ComponentConfig) and is_kind(c) and "kind" in vars(c))


def _first_line(cls: type[ComponentConfig]) -> str:
    return (inspect.getdoc(cls) or "").splitlines()[0]


if __name__ == "__main__":
    write(FOLDER, pages(discover()))
