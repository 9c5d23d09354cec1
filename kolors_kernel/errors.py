"""What can go wrong, for whom, and what would be right."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class KolorsError(Exception):
    """The base of every error this project raises on purpose. The exit code is 2 where the input is wrong."""

    exit_code = 2


class RecipeError(KolorsError):
    """A recipe, a setting or a prompt that cannot be used as it is."""


class PluginError(KolorsError):
    """Two plugins that clash, or one that breaks the contract of its hooks."""


class MissingDependency(KolorsError):
    """A package that only an optional extra installs."""


class GraphError(KolorsError):
    """Steps whose ports do not fit together."""


class WeightsError(KolorsError):
    """A checkpoint that cannot be read, or does not fit the model."""


class DataError(KolorsError):
    """A data set or store that is missing, damaged or of an unknown format."""


class RunError(KolorsError):
    """The input was right and the run failed all the same."""

    exit_code = 1


class Interrupted(KolorsError):
    """The run was stopped by a signal after saving what was finished."""

    def __init__(self, signal_number: int, kept: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; {kept}")
        self.exit_code = 128 + signal_number


@contextmanager
def needs(package: str, *, extra: str, wanted_by: str) -> Iterator[None]:
    """Turn a failed import of an optional package into a line that says how to install it.

    Only the absence of `package` itself is translated; an import that fails inside it is shown as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise MissingDependency(
            f"'{wanted_by}' needs the package '{package}', which is not installed: pip install 'kolors-kernel[{extra}]'"
        ) from error
