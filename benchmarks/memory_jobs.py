"""What the memory bench runs, each in a process of its own: `python -m benchmarks.memory_jobs NAME FOLDER JSON`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.watched import PHASE


def main(name: str, folder: str, options: str) -> None:
    """Run one job."""
    JOBS[name](Path(folder), json.loads(options))


def encode(folder: Path, options: dict[str, Any]) -> None:
    """Build the text encoder with the given settings in bfloat16 and encode the prompts in one pass."""
    import torch

    from kolors_kernel import BuildContext, discover
    from kolors_kernel.kinds import TextEncoderConfig

    settings = {name: options[name] for name in ("weights", "quantize") if name in options}
    config = discover().find("text_encoder", "chatglm3").model_validate({"path": folder / "text_encoder", **settings})
    assert isinstance(config, TextEncoderConfig)
    _say("load")
    encoder = config.build(BuildContext(dtype="bfloat16"))
    _say("encode")
    with torch.no_grad():
        found = encoder.encode(options["prompts"])
    assert found.tokens.isfinite().all() and found.pooled.isfinite().all()


def encode_by_diffusers(folder: Path, options: dict[str, Any]) -> None:
    """Load diffusers' text encoder in bfloat16 and encode the prompts by its pipeline, which has no other part."""
    pipe = _pipeline(folder, unet=None, vae=None)
    _say("encode")
    _embeddings(pipe, options)


def draw_by_diffusers(folder: Path, options: dict[str, Any]) -> None:
    """Draw one picture with the pipeline, all of it in memory or with one of its ways of offloading."""
    pipe = _pipeline(folder)
    if options["offload"] != "none":
        getattr(pipe, f"enable_{options['offload']}_cpu_offload")()
    _say("draw")
    positive, negative = options["prompts"]
    _draw(pipe, options, prompt=positive, negative_prompt=negative)


def draw_in_turns_by_diffusers(folder: Path, options: dict[str, Any]) -> None:
    """Draw one picture with the text encoder loaded, used and dropped before the rest: the guides' way."""
    import gc

    pipe = _pipeline(folder, unet=None, vae=None)
    _say("encode")
    found = _embeddings(pipe, options)
    del pipe
    gc.collect()
    pipe = _pipeline(folder, text_encoder=None, tokenizer=None)
    _say("draw")
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    _draw(pipe, options, **dict(zip(names, found, strict=True)))


def _pipeline(folder: Path, **parts: None) -> Any:
    """Load diffusers' pipeline without the parts that are None."""
    import torch
    from diffusers import KolorsPipeline

    _say("load")
    pipe = KolorsPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        folder, variant="fp16", torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _embeddings(pipe: Any, options: dict[str, Any]) -> Any:
    import torch

    positive, negative = options["prompts"]
    with torch.no_grad():
        found = pipe.encode_prompt(positive, negative_prompt=negative, device="cpu")
    assert all(each.isfinite().all() for each in found)
    return found


def _draw(pipe: Any, options: dict[str, Any], **prompts: Any) -> None:
    import numpy as np

    size, steps = options["size"], options["steps"]
    images = pipe(**prompts, height=size, width=size, num_inference_steps=steps, output_type="np").images
    assert images.shape == (1, size, size, 3) and np.isfinite(images).all()


def _say(phase: str) -> None:
    print(f"{PHASE}{phase}", flush=True)


JOBS = {each.__name__: each for each in (encode, encode_by_diffusers, draw_by_diffusers, draw_in_turns_by_diffusers)}

if __name__ == "__main__":
    main(*sys.argv[1:])
