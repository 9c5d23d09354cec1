from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kolors_recipes.drawing import Drawer

from kolors_kernel import BuildContext, load_recipe
from kolors_kernel.kinds import RecipeConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
diffusers = pytest.importorskip("diffusers", reason="diffusers, the independent implementation, is not installed")

PROMPTS = ["一只戴墨镜的红苹果，贴纸风格", "a red apple with sunglasses"]
NEGATIVE = "模糊 blurry"
SIZE = (48, 64)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small random KolorsPipeline with the released model's structure, saved as the released folders are."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, KolorsPipeline, UNet2DConditionModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("peer")
    model = Path(__file__).parents[2] / "plugins/kolors_demo/data/tokenizer.model"
    tokenizer = ChatGLMTokenizer(vocab_file=str(model))
    text = ChatGLMConfig(
        num_layers=3,
        padded_vocab_size=4096,
        hidden_size=32,
        ffn_hidden_size=48,
        kv_channels=8,
        num_attention_heads=4,
        seq_length=512,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        rmsnorm=True,
        original_rope=True,
        use_cache=True,
        layernorm_epsilon=1e-5,
        torch_dtype="float32",
    )
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=32 + 6 * 8,
        cross_attention_dim=24,
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_proj",
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.13025,
        force_upcast=True,
    )
    schedule = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.014,
        num_train_timesteps=1100,
        timestep_spacing="leading",
        steps_offset=1,
    )
    encoder = ChatGLMModel(text)
    for weight in encoder.parameters():  # the peer leaves them as the memory was
        torch.nn.init.normal_(weight, std=0.3)
    pipeline = KolorsPipeline(vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=schedule)
    for name in ("vae", "text_encoder", "unet"):
        getattr(pipeline, name).eval().save_pretrained(folder / name)
    shutil.copy(model, folder / "text_encoder/tokenizer.model")
    pipeline.set_progress_bar_config(disable=True)
    return SimpleNamespace(pipeline=pipeline, folder=folder)


def our_recipe(folder: Path, write: Any, tiny: SimpleNamespace) -> RecipeConfig:
    recipe = tiny.drawing(
        text_encoder={"type": "chatglm3", "path": str(folder / "text_encoder")},
        autoencoder={"type": "sdxl_vae", "path": str(folder / "vae")},
        backbone={"type": "sdxl_unet", "path": str(folder / "unet")},
        solver={"type": "euler", "steps": 10, "spacing": "leading"},
        guidance={"type": "classifier_free", "scale": 5.0},
        negative_prompt=NEGATIVE,
        height=SIZE[0],
        width=SIZE[1],
    )
    return load_recipe(write(recipe))


# The peer keeps its sigmas, its timesteps and its text encoder's norms and rotation in float32 whatever the model's
# dtype, so float64 cannot agree further than those do; each part is held to 1e-9 in its own plugin's tests.
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-5)])
def test_ten_guided_steps_draw_what_the_kolors_pipeline_draws(
    peer: Any, write: Any, tiny: SimpleNamespace, dtype: str, bound: float
) -> None:
    kind = getattr(torch, dtype)
    drawer = Drawer.assemble(our_recipe(peer.folder, write, tiny), BuildContext(dtype=dtype))  # type: ignore[arg-type]
    noise = torch.randn(2, 4, SIZE[0] // 8, SIZE[1] // 8, generator=torch.Generator().manual_seed(1), dtype=kind)
    expected = peer.pipeline.to(kind)(
        PROMPTS,
        negative_prompt=[NEGATIVE] * 2,
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=10,
        guidance_scale=5.0,
        latents=noise.clone(),
        output_type="pt",
    ).images
    with torch.no_grad():
        (images,) = drawer.graph.run(
            captions=[NEGATIVE] * 2 + PROMPTS,
            noise=noise,
            size=torch.tensor([[*SIZE, 0, 0, *SIZE]] * 4),
            random=torch.Generator().manual_seed(0),
            tick=lambda: None,
            **drawer.parts,
        )
    ours = (images / 2 + 0.5).clamp(0, 1)
    assert ours.dtype == kind and expected.std() > 0.01
    assert float((ours - expected).norm() / expected.norm()) < bound
