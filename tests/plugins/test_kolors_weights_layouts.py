"""Both published layouts, whole and damaged, at tiny widths."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kolors_chatglm3.architecture import Architecture
from kolors_chatglm3.config import ChatGLM3
from kolors_sdxl.architecture import UNetArchitecture, VAEArchitecture
from kolors_sdxl.config import SDXLVAE, SDXLUNet
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import layouts
from kolors_kernel import BuildContext
from kolors_kernel.errors import WeightsError
from kolors_kernel.values import ConditioningSpec, LatentSpec
from kolors_weights.reading import find_weights, open_state, read_config

TEXT, LATENTS = ConditioningSpec(tokens=256, width=32, pooled=32), LatentSpec(channels=4, downscale=4)
STEM = "diffusion_pytorch_model"
LAYOUTS = {"Kolors": "pytorch_model", "Kolors-diffusers": "model"}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layouts, narrow, with the encoder in several shards each."""
    encoder = Architecture(
        num_layers=4,
        hidden_size=32,
        num_attention_heads=2,
        multi_query_group_num=1,
        kv_channels=16,
        ffn_hidden_size=64,
        padded_vocab_size=layouts.vocabulary(layouts.TOKENIZER),
    )
    unet, vae = SDXLUNet.tiny().architecture, SDXLVAE.tiny().architecture
    assert isinstance(unet, UNetArchitecture) and isinstance(vae, VAEArchitecture)
    folder = tmp_path_factory.mktemp("published")
    layouts.write(folder, layouts.Size(encoder, unet, vae, pickle_shard=20_000, safetensors_shard=270_000))
    return folder


@pytest.fixture
def kolors(written: Path, tmp_path: Path) -> Path:
    """A copy of both layouts to damage."""
    return Path(shutil.copytree(written, tmp_path / "published"))


def text(folder: Path) -> dict[str, Tensor]:
    return dict(ChatGLM3(path=folder).build(BuildContext()).module.state_dict())


def net(folder: Path, dtype: str = "float32") -> dict[str, Tensor]:
    built = SDXLUNet(path=folder).build(BuildContext(dtype=dtype), conditioning=TEXT, latents=LATENTS)
    return dict(built.module.state_dict())


def index_of(folder: Path) -> Path:
    return next(folder.glob("*.index*.json"))


def shard_names(folder: Path) -> dict[str, str]:
    return dict(json.loads(index_of(folder).read_text())["weight_map"])


def read(file: Path) -> dict[str, Tensor]:
    """Return a file's tensors by the libraries that wrote the format."""
    if file.suffix == ".safetensors":
        return {key: tensor.clone() for key, tensor in load_file(file).items()}
    return dict(torch.load(file, weights_only=True))


def rewrite(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = read(file)
    change(state)
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_part_of_a_published_layout_loads_as_it_is_stored(written: Path, layout: str) -> None:
    folder = written / layout
    names = shard_names(folder / "text_encoder")
    assert len(set(names.values())) > 2
    stored = {
        key: tensor for name in set(names.values()) for key, tensor in read(folder / "text_encoder" / name).items()
    }
    found = text(folder / "text_encoder")
    assert set(stored) - set(found) == {
        "encoder.final_layernorm.weight",
        "output_layer.weight",
        "rotary_pos_emb.inv_freq",
    }
    assert all(torch.equal(tensor, stored[key].float()) for key, tensor in found.items())
    for part, found in (("unet", net(folder / "unet")), ("vae", SDXLVAE(path=folder / "vae").build(BuildContext()))):
        state = found if isinstance(found, dict) else dict(found.module.state_dict())
        stored = read(folder / part / f"{STEM}.fp16.safetensors")
        assert state.keys() == stored.keys()
        assert all(torch.equal(tensor, stored[key].float()) for key, tensor in state.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_nets_are_those_that_diffusers_loads(written: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = written / "Kolors-diffusers"
    for peer, ours in (
        (UNet2DConditionModel, net(folder / "unet")),
        (AutoencoderKL, SDXLVAE(path=folder / "vae").build(BuildContext()).module.state_dict()),
    ):
        name = "unet" if peer is UNet2DConditionModel else "vae"
        theirs = peer.from_pretrained(folder / name, variant="fp16").state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())


def test_float16_is_converted_to_what_is_asked_for(written: Path) -> None:
    stored = read(written / f"Kolors/unet/{STEM}.fp16.safetensors")
    for dtype in ("bfloat16", "float32", "float64"):
        found = net(written / "Kolors/unet", dtype)
        wanted = getattr(torch, dtype)
        assert all(
            tensor.dtype == wanted and torch.equal(tensor, stored[key].to(wanted)) for key, tensor in found.items()
        )


def test_full_precision_comes_before_half(kolors: Path) -> None:
    folder = kolors / "Kolors/unet"
    state = {key: tensor.float() + 1e-4 for key, tensor in read(folder / f"{STEM}.fp16.safetensors").items()}
    save_file(state, folder / f"{STEM}.safetensors")
    assert all(torch.equal(tensor, state[key]) for key, tensor in net(folder).items())
    assert find_weights(folder, STEM).name == f"{STEM}.safetensors"


@pytest.mark.parametrize("name", [f"{STEM}.fp16.safetensors", "renamed.safetensors", "renamed.bin", "renamed.pth"])
def test_a_single_file_beside_a_config_loads(kolors: Path, name: str) -> None:
    folder = kolors / "Kolors-diffusers/unet"
    stored = read(folder / f"{STEM}.fp16.safetensors")
    if name.endswith(".safetensors"):
        save_file(stored, folder / name)
    else:
        torch.save(stored, folder / name)
    found = net(folder / name)
    assert all(torch.equal(tensor, stored[key].float()) for key, tensor in found.items())


def test_a_whole_model_in_place_of_a_part_names_the_parts(written: Path) -> None:
    for config in (SDXLVAE(path=written / "Kolors"), ChatGLM3(path=written / "Kolors")):
        with pytest.raises(WeightsError, match=r"Kolors is a whole model .*Kolors/unet or .*Kolors/vae"):
            config.spec()


def test_a_folder_or_file_without_a_config_says_so(kolors: Path) -> None:
    (kolors / "Kolors/unet/config.json").unlink()
    for place in (kolors / "Kolors/unet", kolors / f"Kolors/unet/{STEM}.fp16.safetensors"):
        with pytest.raises(WeightsError, match=r"unet.* has no config\.json"):
            read_config(place)


def test_a_file_of_no_known_kind_says_which_are_known(kolors: Path) -> None:
    (kolors / "Kolors/unet/net.gguf").write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match=r"net\.gguf is of no kind that is read here, which are \.safetensors"):
        net(kolors / "Kolors/unet/net.gguf")


class Code:
    """What a pickle may do to whoever loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def truncated(folder: Path, shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size * 3 // 4])


def empty(folder: Path, shard: Path) -> None:
    shard.write_bytes(b"")


def gone(folder: Path, shard: Path) -> None:
    shard.unlink()


def lacking_a_key(folder: Path, shard: Path) -> None:
    rewrite(shard, lambda state: state.popitem())


def holding_more(folder: Path, shard: Path) -> None:
    rewrite(shard, lambda state: state.update({"encoder.more": torch.zeros(1)}))


def of_integers(folder: Path, shard: Path) -> None:
    rewrite(shard, lambda state: state.update({key: tensor.to(torch.int8) for key, tensor in state.items()}))


def narrow(folder: Path, shard: Path) -> None:
    def cut(state: dict[str, Tensor]) -> None:
        state.update({key: tensor[..., : tensor.shape[-1] // 2].clone() for key, tensor in state.items()})

    rewrite(shard, cut)


def not_a_number(folder: Path, shard: Path) -> None:
    rewrite(
        shard,
        lambda state: next(tensor for key, tensor in state.items() if "layers" in key).view(-1)[:1].fill_(torch.nan),
    )


def climbing_out(folder: Path, shard: Path) -> None:
    outside = folder.parent / shard.name
    shard.rename(outside)
    index = index_of(folder)
    index.write_text(index.read_text().replace(f'"{shard.name}"', f'"../{shard.name}"'))


def naming_itself(folder: Path, shard: Path) -> None:
    index = index_of(folder)
    index.write_text(index.read_text().replace(f'"{shard.name}"', f'"{index.name}"'))


def with_code(folder: Path, shard: Path) -> None:
    rewrite(shard, lambda state: state.update({"encoder.code": Code(folder / "it ran")}))  # type: ignore[dict-item]


DAMAGE = [
    (truncated, "is not a complete"),
    (empty, "is not a complete"),
    (gone, r"index.*json names the shard '{shard}', which is not in"),
    (lacking_a_key, r"{shard} is not what .*index.*json says: it lacks 1 keys, as encoder"),
    (holding_more, r"{shard} is not what .*index.*json says: it holds besides 1 keys, as encoder\.more"),
    (of_integers, r"of a wrong dtype: .* is int8, should be float16 or .*; these weights are quantised to int8"),
    (narrow, r"misshapen: .*encoder\.layers.* is \[.*\], should be \["),
    (not_a_number, r"{shard}: encoder\.layers\..* is not finite"),
    (climbing_out, r"names the shard '\.\./{shard}', which is no file of weights in"),
    (naming_itself, r"names the shard '.*index.*json', which is no file of weights in"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("damage", "said"), DAMAGE, ids=[damage.__name__ for damage, _ in DAMAGE])
def test_a_damaged_encoder_says_what_is_wrong_and_where(
    kolors: Path, layout: str, damage: Callable[[Path, Path], None], said: str
) -> None:
    folder = kolors / layout / "text_encoder"
    shard = folder / shard_names(folder)["encoder.layers.1.mlp.dense_4h_to_h.weight"]
    damage(folder, shard)
    with pytest.raises(WeightsError, match=said.format(shard=shard.name.replace(".", r"\."))):
        text(folder)


def test_a_shard_with_code_is_refused_and_not_run(kolors: Path) -> None:
    folder = kolors / "Kolors/text_encoder"
    shard = folder / shard_names(folder)["encoder.layers.1.mlp.dense_4h_to_h.weight"]
    with_code(folder, shard)
    with pytest.raises(WeightsError, match=rf"{shard.name} is damaged or holds more than tensors, perhaps code"):
        text(folder)
    assert not (folder / "it ran").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, rf"{STEM}\.fp16\.safetensors is not a complete safetensors file"),
        (of_integers, "of a wrong dtype: .*quantised to int8"),
        (narrow, r"misshapen: .* is \[.*\], should be \["),
    ],
)
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_damaged_net_says_what_is_wrong(
    kolors: Path, part: str, damage: Callable[[Path, Path], None], said: str
) -> None:
    folder = kolors / "Kolors-diffusers" / part
    damage(folder, folder / f"{STEM}.fp16.safetensors")
    with pytest.raises(WeightsError, match=said):
        net(folder) if part == "unet" else SDXLVAE(path=folder).build(BuildContext())


def test_sdxls_parts_among_kolors_are_recognised(kolors: Path) -> None:
    folder = kolors / "Kolors-diffusers"

    def plain(state: dict[str, Tensor]) -> None:
        del state["encoder_hid_proj.weight"], state["encoder_hid_proj.bias"]

    rewrite(folder / f"unet/{STEM}.fp16.safetensors", plain)
    with pytest.raises(WeightsError, match=r"2 missing: encoder_hid_proj.*; this is SDXL's U-Net"):
        net(folder / "unet")
    shutil.copy(folder / f"vae/{STEM}.fp16.safetensors", folder / f"unet/{STEM}.fp16.safetensors")
    with pytest.raises(WeightsError, match=r"; this is a VAE$"):
        net(folder / "unet")


def lying(header: dict[str, Any] | bytes, size: int = 64, *, length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + bytes(size)


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LIES = {
    "beyond the end": lying({"a": entry(0, 4096, [1024])}),
    "far beyond the end": lying({"a": entry(2**40, 2**40 + 64, [16])}),
    "overlapping": lying({"a": entry(0, 64, [16]), "b": entry(32, 96, [16])}, 96),
    "with a hole": lying({"a": entry(0, 16, [4]), "b": entry(48, 64, [4])}),
    "backwards": lying({"a": entry(64, 0, [16])}),
    "negative": lying({"a": entry(-64, 0, [16])}),
    "of another size": lying({"a": entry(0, 64, [17])}),
    "with a shape that overflows": lying({"a": entry(0, 64, [2**33, 2**33])}),
    "of an unknown dtype": lying({"a": entry(0, 64, [16], "F128")}),
    "longer than the file": lying({"a": entry(0, 64, [16])}, length=2**20),
    "of a length without end": lying({"a": entry(0, 64, [16])}, length=2**64 - 1),
    "no JSON": lying(b"{" * 40),
    "no text": lying(b"\xff\xfe" * 20),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(LIES[lie])
    with pytest.raises(WeightsError, match=r"weights\.safetensors is not a complete safetensors file"):
        open_state(file)


def test_an_honest_header_is_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(lying({"a": entry(0, 64, [16])}))
    assert torch.equal(open_state(file)["a"], torch.zeros(16))
