"""The list of damaged samples that others stood in for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from kolors_zarr.store.damage import Damage

logger = logging.getLogger(__name__)


class Quarantine:
    """Notes each damaged sample once: a line of JSON in the file `path`, and a warning."""

    def __init__(self, path: Path, *, store: str) -> None:
        self.path, self._store = path, store
        self._known = set[int]()

    def add(self, damages: Iterable[Damage]) -> int:
        """Note damaged samples; return how many are new."""
        new = [damage for damage in damages if damage.number not in self._known]
        if new:
            self._known.update(damage.number for damage in new)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                for damage in new:
                    logger.warning("%s: sample %s is replaced: %s", self._store, damage.in_words, damage.why)
                    file.write(json.dumps({"store": self._store, **asdict(damage)}, ensure_ascii=False) + "\n")
        return len(new)
