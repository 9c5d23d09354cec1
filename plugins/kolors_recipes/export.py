"""The job of the export recipe: the folders that diffusers' KolorsPipeline loads, written part by part."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from kolors_kernel.errors import RecipeError, RunError, WeightsError
from kolors_kernel.graph import Graph, step
from kolors_kernel.protocols import Autoencoder, Backbone, TextEncoder
from kolors_recipes.parts import build_model
from kolors_weights.modules import is_finite

if TYPE_CHECKING:
    from kolors_kernel.component import BuildContext
    from kolors_recipes.export_config import Export
    from kolors_recipes.trainable import SupportsTraining

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
"""Where the folders are made before they are put in their place; what a killed run left is cleared away."""
_CLASSES = {
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["kolors", "ChatGLMModel"],
    "tokenizer": ["kolors", "ChatGLMTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_PIPELINE = {
    "_class_name": "KolorsPipeline",
    "_diffusers_version": "0.30.0",
    "force_zeros_for_empty_prompt": False,
    **_CLASSES,
}
_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.30.0",
    "interpolation_type": "linear",
    "rescale_betas_zero_snr": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
_TOKENIZER = {
    "do_lower_case": False,
    "padding_side": "left",
    "remove_space": False,
    "tokenizer_class": "ChatGLMTokenizer",
}
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}


@dataclass(frozen=True)
class Target:
    """Where a part is written, and in which floating type."""

    folder: Path
    dtype: torch.dtype


@step(writes="text_parameters")
def write_text_encoder(text_encoder: TextEncoder, target: Target) -> int:
    """Write text_encoder/, and tokenizer/ from what it saves."""
    parameters = _write("text_encoder", text_encoder, target)
    model = target.folder / "text_encoder/tokenizer.model"
    if not model.is_file():
        raise RecipeError("the text encoder cannot be exported: it saves no tokenizer.model")
    tokenizer = target.folder / "tokenizer"
    tokenizer.mkdir()
    shutil.copy(model, tokenizer)
    _write_json(tokenizer / "tokenizer_config.json", _TOKENIZER)
    return parameters


@step(writes="net_parameters")
def write_backbone(backbone: Backbone, scheduler: Mapping[str, Any], target: Target) -> int:
    """Write unet/, and scheduler/, which says what the net predicts."""
    content = {**_SCHEDULER, **scheduler, "prediction_type": _PREDICTIONS[backbone.predicts]}
    (target.folder / "scheduler").mkdir()
    _write_json(target.folder / "scheduler/scheduler_config.json", content)
    return _write("unet", backbone, target)


@step(writes="picture_parameters")
def write_autoencoder(autoencoder: Autoencoder, target: Target) -> int:
    """Write vae/."""
    return _write("vae", autoencoder, target)


def export_graphs() -> Mapping[str, Graph]:
    """Return a graph for each part, in the order they are written in."""
    steps = {"text_encoder": write_text_encoder, "backbone": write_backbone, "autoencoder": write_autoencoder}
    return {
        part: Graph([each], inputs=["target", "scheduler"], outputs=list(each.writes), parts=[part])
        for part, each in steps.items()
    }


class ExportJob:
    """Writes a model beside its place and puts it there when it is complete, model_index.json last.

    Raises RecipeError when there is something else than a recipe in its place.
    """

    def __init__(self, recipe: Export, ctx: BuildContext) -> None:
        self._recipe, self._ctx = recipe, ctx
        self.graphs: Mapping[str, Graph] = recipe.graphs()
        there = sorted(each.name for each in ctx.out.iterdir()) if ctx.out.is_dir() else []
        others = [name for name in there if name not in ("recipe.yaml", UNFINISHED)]
        if others:
            raise RecipeError(f"{ctx.out} has {', '.join(others[:6])} in it: choose another --out, or clear it")

    def run(self) -> Mapping[str, float]:
        """Write every part; return the parameters, and the bytes on disk."""
        made, out = self._ctx.out / UNFINISHED, self._ctx.out
        try:
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            parameters = self._write_parts(made)
            _write_json(made / "model_index.json", _PIPELINE)
            size = sum(file.stat().st_size for file in made.rglob("*"))
            for each in sorted(made.iterdir(), key=lambda path: path.is_file()):  # model_index.json last
                each.rename(out / each.name)
        except OSError as error:
            raise RunError(f"{out} could not be written: {error}") from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return {"parameters": parameters, "bytes": size}

    def _write_parts(self, folder: Path) -> int:
        target = Target(folder, getattr(torch, self._recipe.dtype))
        scheduler = cast("Any", self._recipe.schedule).released_form()
        parameters = 0
        for name, graph in self.graphs.items():
            parts = build_model(self._recipe, self._ctx, graph.needs, seed=0)
            (written,) = graph.run(target=target, scheduler=scheduler, **parts)
            logger.info("%s: %d parameters", name, written)
            parameters += written
            del parts  # before the next is loaded
        return parameters


def _write(name: str, part: object, target: Target) -> int:
    """Have a part saved as the folder of this name and return how many parameters it has."""
    if not hasattr(part, "save") or not hasattr(part, "module"):
        raise RecipeError(f"the part for {name}/ has no released form: it cannot be saved")
    saving = cast("SupportsTraining", part)
    state = saving.module.to(target.dtype).state_dict()
    whole = [key for key, tensor in state.items() if not tensor.is_floating_point()]
    if whole:
        raise RecipeError(f"the part for {name}/ has no released form: {whole[0]} holds {state[whole[0]].dtype}")
    saving.save(target.folder / name)
    for key, tensor in state.items():
        if not is_finite(tensor):
            raise WeightsError(f"{name}/: {key} is not finite in {target.dtype}; set dtype: float32 or bfloat16")
    config = json.loads((target.folder / name / "config.json").read_text(encoding="utf-8"))
    wanted, found = _CLASSES[name][1], [config.get("_class_name"), *config.get("architectures", ())]
    if wanted not in found:
        raise RecipeError(f"the part for {name}/ has no released form: it saves no {wanted}")
    return sum(tensor.numel() for tensor in state.values())


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
