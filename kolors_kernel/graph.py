"""An ordered list of steps wired by parameter name and pruned from the outputs back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kolors_kernel.errors import GraphError


@dataclass(frozen=True)
class Step:
    """A plain function whose parameter names are the ports it reads; `writes` are the ports it fills.

    Port types are the annotations as written: two steps agree on a port when they name the same type.
    """

    function: Callable[..., Any]
    reads: Mapping[str, str]
    writes: Mapping[str, str]

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self.function(*args, **kwargs)


def step(*, writes: str | tuple[str, ...]) -> Callable[[Callable[..., Any]], Step]:
    """Make a function a step that writes these ports; several are returned as a tuple, in order.

    Raises GraphError when a parameter or the result has no annotation, or the result's parts do not match `writes`.
    """
    names = (writes,) if isinstance(writes, str) else writes

    def made(function: Callable[..., Any]) -> Step:
        signature = inspect.signature(function)
        reads = {name: _written(p.annotation) for name, p in signature.parameters.items()}
        result = _written(signature.return_annotation)
        types = [result] if isinstance(writes, str) else _parts_of_tuple(result)
        if "" in reads.values() or len(types) != len(names) or "" in types:
            raise GraphError(f"step {function.__name__} must annotate every parameter and what it writes: {names}")
        return Step(function, reads, dict(zip(names, types, strict=True)))

    return made


class Graph:
    """The steps that `outputs` need, in order, checked by port name and type.

    `inputs` are ports the caller gives to every run, `parts` are components that may be read as ports. What is
    kept decides what must be built: see `needs`. Raises GraphError when a port is read that nothing before
    writes, is written twice, or is written as one type and read as another.
    """

    def __init__(
        self, steps: Iterable[Step], *, inputs: Iterable[str], outputs: Sequence[str], parts: Iterable[str] = ()
    ) -> None:
        self.outputs = tuple(outputs)
        given, available = set(inputs), set(parts)
        wanted, kept, listed = set(self.outputs), list[Step](), list(steps)
        self._refuse_two_writers(listed)
        for each in reversed(listed):
            fills = (set(each.writes) & wanted) - given
            if fills:
                kept.append(each)
                wanted = (wanted - set(each.writes)) | set(each.reads)
        self.steps = tuple(reversed(kept))
        self.inputs = tuple(sorted(wanted & given))
        self.needs = tuple(sorted(wanted & available - given))
        self._check(given | available)

    @staticmethod
    def _refuse_two_writers(steps: Sequence[Step]) -> None:
        writers: dict[str, str] = {}
        for each in steps:
            for port in each.writes:
                if port in writers:
                    raise GraphError(f"{each.name} writes '{port}', which {writers[port]} already writes")
                writers[port] = each.name

    def _check(self, present: set[str]) -> None:
        types: dict[str, tuple[str, str]] = {}  # port -> its type and who said so
        for each in self.steps:
            for port, kind in each.reads.items():
                if port not in present:
                    raise GraphError(f"{each.name} reads '{port}', which no earlier step writes and no input gives")
                known, by = types.setdefault(port, (kind, each.name))
                if known != kind:
                    raise GraphError(f"{each.name} wants '{port}' as {kind}, but {by} has it as {known}")
            for port, kind in each.writes.items():
                if port in types:
                    raise GraphError(f"{each.name} writes '{port}', which {types[port][1]} already read")
                if port in present:
                    raise GraphError(f"{each.name} writes '{port}', which is given")
                types[port] = (kind, each.name)
                present.add(port)
        for port in self.outputs:
            if port not in present:
                raise GraphError(f"no step writes the output '{port}'")

    def run(self, **ports: Any) -> tuple[Any, ...]:
        """Run the steps on these inputs and parts and return the outputs, in order; GraphError if a port is missing."""
        missing = [name for name in (*self.inputs, *self.needs) if name not in ports]
        if missing:
            raise GraphError(f"the graph needs {', '.join(missing)}; given: {', '.join(sorted(ports))}")
        values = dict(ports)
        for each in self.steps:
            result = each.function(**{name: values[name] for name in each.reads})
            names = tuple(each.writes)
            values.update({names[0]: result} if len(names) == 1 else zip(names, result, strict=True))
        return tuple(values[name] for name in self.outputs)

    def describe(self) -> str:
        """Return the steps as lines of text: name, what it reads, what it writes, and the parts to be built."""
        lines = [f"inputs   {', '.join(self.inputs) or '-'}"]
        width = max((len(s.name) for s in self.steps), default=0)
        lines += [f"  {s.name:<{width}}  {', '.join(s.reads)} -> {_typed(s.writes)}" for s in self.steps]
        return "\n".join([*lines, f"outputs  {', '.join(self.outputs)}", f"builds   {', '.join(self.needs) or '-'}"])


def _typed(ports: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in ports.items())


def _written(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _parts_of_tuple(annotation: str) -> list[str]:
    if not (annotation.startswith("tuple[") and annotation.endswith("]")):
        return []
    return [part.strip() for part in annotation[6:-1].split(",")]
