"""Observers: what a run leaves behind beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kolors_recipes.pictures import contact_sheet, save_png
from kolors_weights.writing import write_file

if TYPE_CHECKING:
    from kolors_kernel.values import Event


class JSONLObserver:
    """Appends events with scalars to a file; a run that goes on from step n first drops the lines after n."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on(self, event: Event) -> None:
        """Write one line, or on "start" forget what a lost stretch of the run had noted."""
        if event.name == "start":
            self._forget_after(event.step)
            return
        row = {"event": event.name, "stage": event.stage, "step": event.step, **event.scalars}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _forget_after(self, step: int) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_file(self._path, lambda file: file.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8"))


class ImageGridObserver:
    """Saves drawn pictures as a contact sheet each time."""

    def __init__(self, folder: Path, *, columns: int) -> None:
        self._folder, self._columns = folder, columns

    def on(self, event: Event) -> None:
        """Save the pictures of an event that has some."""
        if event.images is not None:
            text = {"prompts": json.dumps(list(event.prompts), ensure_ascii=False)}
            sheet = contact_sheet(event.images, columns=self._columns)
            save_png(sheet, self._folder / f"{event.step:08d}.png", text=text)


class TensorBoardObserver:
    """Writes event files."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def on(self, event: Event) -> None:
        """Write scalars and pictures, tagged by stage."""
        for name, value in event.scalars.items():
            self._writer.add_scalar(f"{event.stage}/{name}", value, event.step)
        if event.images is not None:
            pictures = event.images.clamp(-1, 1).add(1).div(2)
            self._writer.add_images(f"{event.stage}/samples", pictures, event.step)
        if event.name in ("stage_end", "checkpoint"):
            self._writer.flush()
