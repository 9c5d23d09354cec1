"""Start-up, discovery, checking and assembly, as whole processes.

Times are CPU time of the whole process with one thread. The floor is an interpreter that does nothing; the peers are
what a program pays that imports torch or diffusers before it can say anything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from benchmarks.measure import compare, processes
from benchmarks.report import Note, Result, timed_row
from kolors_kernel import discover
from kolors_kernel.errors import KolorsError
from kolors_kernel.kinds import RecipeConfig
from kolors_kernel.recipe_file import write_recipe

threads = 1
ENVIRONMENT = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}

ASSEMBLE = """
import sys
from pathlib import Path
from kolors_kernel import BuildContext, load_recipe
load_recipe(sys.argv[1]).build(BuildContext(out=Path(sys.argv[2])))
"""
ASSEMBLE_BY_DIFFUSERS = """
from diffusers import AutoencoderKL, EulerDiscreteScheduler, KolorsPipeline, UNet2DConditionModel
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
text = ChatGLMModel(ChatGLMConfig(
    num_layers=2, padded_vocab_size=64, hidden_size=32, ffn_hidden_size=48, kv_channels=8, num_attention_heads=4,
    multi_query_attention=True, multi_query_group_num=2, add_bias_linear=False, add_qkv_bias=True, original_rope=True,
))
unet = UNet2DConditionModel(
    sample_size=2, block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=32, attention_head_dim=(2, 4),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 1), addition_embed_type="text_time", addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=80, use_linear_projection=True,
)
vae = AutoencoderKL(
    block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=4,
)
KolorsPipeline(vae=vae, text_encoder=text, tokenizer=None, unet=unet, scheduler=EulerDiscreteScheduler())
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare how long to measure."""
    parser.add_argument("--rounds", type=int, default=5, help="how many interleaved rounds the medians are of")


def results(options: argparse.Namespace) -> Iterator[Result]:
    """Measure every command beside each of its peers."""
    floor = ("python -c pass", _python("pass"))
    torch, diffusers = (_importing(name) for name in ("torch", "diffusers"))
    pipeline = ("import KolorsPipeline", _python("from diffusers import KolorsPipeline"))
    assembled = ("tiny KolorsPipeline", _python(ASSEMBLE_BY_DIFFUSERS))
    with TemporaryDirectory() as folder:
        recipe = Path(folder) / "tiny.yaml"
        asked = [
            ("import kolors_kernel", _python("import kolors_kernel"), [floor, torch, diffusers]),
            (
                "kolors --help",
                _script("kolors", "--help"),
                [floor, ("diffusers-cli --help", _script("diffusers-cli", "--help"))],
            ),
            ("discover()", _python("from kolors_kernel import discover; discover()"), [floor, torch]),
            ("kolors components", _script("kolors", "components"), [floor, torch]),
        ]
        try:
            write_recipe(cast(RecipeConfig, discover().find("recipe", "text_to_image").tiny()), recipe)
        except (KolorsError, ValueError) as error:
            yield Note("kernel", "check and assemble", "text_to_image", str(error))
        else:
            asked += [
                ("kolors check", _script("kolors", "check", str(recipe)), [floor, pipeline]),
                ("assemble a tiny text_to_image", _python(ASSEMBLE, str(recipe), folder), [torch, assembled]),
            ]
        for name, command, peers in asked:
            for peer_name, peer in peers:
                yield _row(name, command, peer_name, peer, options.rounds)


def _row(name: str, command: list[str], peer_name: str, peer: list[str], rounds: int) -> Result:
    both = (processes(each, environment=ENVIRONMENT) for each in (command, peer))
    return timed_row("kernel", name, names=("whole process", peer_name), measured=compare(*both, rounds=rounds))


def _importing(package: str) -> tuple[str, list[str]]:
    return f"import {package}", _python(f"import {package}")


def _python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


def _script(name: str, *arguments: str) -> list[str]:
    """Return the command of a script installed beside this interpreter."""
    return [str(Path(sys.executable).with_name(name)), *arguments]
