"""Sets of the Hugging Face library `datasets`, by their name on the Hub or the folder they were saved in."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets

from kolors_kernel.errors import DataError
from kolors_zarr.collections.files import stamp_of
from kolors_zarr.collections.inputs import Fields, Input
from kolors_zarr.collections.table import Table


class HuggingFaceSet(Table):
    """The rows of one split; where an input is: its row."""

    def __init__(self, source: Path | str, split: str, fields: Fields, *, image: str, identity: str) -> None:
        # What is downloaded may leave its pictures as files in the library's cache; other paths are not followed.
        folder = source if isinstance(source, Path) else Path(datasets.config.HF_CACHE_HOME)
        super().__init__(folder, fields, image=image, identity=identity)
        self.source, self.split = source, split

    @cached_property
    def rows(self) -> datasets.Dataset:
        """The split with the columns that are read, pictures as bytes. Raises DataError when there is none such."""
        try:
            if isinstance(self.source, Path):
                found = datasets.load_from_disk(self.source)
                found = found[self.split] if isinstance(found, datasets.DatasetDict) else found
            else:
                found = datasets.load_dataset(self.source, split=self.split)
        except (FileNotFoundError, ConnectionError, ValueError) as error:
            raise DataError(f"the set {self.source} cannot be loaded: {error}") from error
        except KeyError as error:
            raise DataError(f"the set {self.source} has no split '{self.split}'; it has {', '.join(found)}") from error
        rows = found.select_columns(self.columns(found.column_names, where=f"the set {self.source}"))
        if isinstance(rows.features[self.image], datasets.Image):
            rows = rows.cast_column(self.image, datasets.Image(decode=False))
        return rows

    def inputs(self) -> Iterator[Input]:
        """List every row."""
        stamp = " ".join(stamp_of(Path(each["filename"]).stat()) for each in self.rows.cache_files)
        ids = self.rows[self.identity] if self.identity else range(len(self.rows))
        for row, each in enumerate(ids):
            yield self.input(f"{self.split}:{row}", each, where=(row,), stamp=stamp)

    def row(self, each: Input) -> dict[str, Any]:
        """Return a row of the split."""
        return dict(self.rows[each.where[0]])
