from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kolors_kernel.errors import WeightsError
from kolors_weights.causes import likeliest_cause
from kolors_weights.modules import fit, without_weights
from kolors_weights.reading import open_state
from kolors_weights.state import State

MEBI = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="what is resident is read from /proc")
KINDS = ["safetensors", "bin"]


def status(field: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def write(state: Mapping[str, Tensor], file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file(dict(state), file)
    else:
        torch.save(dict(state), file)
    return file


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_is_read_when_it_is_touched_and_dropped_when_it_is_released(tmp_path: Path, kind: str) -> None:
    size = 32 * MEBI
    file = write({name: torch.ones(size // 4) for name in ("a", "b")}, tmp_path / f"weights.{kind}")
    before = status("RssFile")
    state = open_state(file)
    assert state["a"].shape == (size // 4,) and state["b"].dtype == torch.float32
    assert status("RssFile") - before < 4 * MEBI
    assert float(state["a"].sum()) == size // 4
    assert size - MEBI < status("RssFile") - before < size + 4 * MEBI
    state.release("a")
    assert status("RssFile") - before < 4 * MEBI
    state.expect("b")
    assert float(state["a"].sum()) == float(state["b"].sum()) == size // 4


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_loading_takes_the_memory_of_the_model_and_of_one_tensor(tmp_path: Path, kind: str) -> None:
    def model() -> nn.Module:
        return nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(10)))  # 80 MiB as they are stored

    with without_weights():
        module, shapes = model(), model().state_dict()
    file = write({key: torch.ones(t.shape, dtype=torch.float16) for key, t in shapes.items()}, tmp_path / f"w.{kind}")
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    fit(module, open_state(file), where=file, dtype=torch.float32)
    size = sum(weight.nbytes for weight in module.parameters())
    assert size == 10 * 4 * (2048 * 2048 + 2048)
    assert status("VmHWM") - before < size + 2 * 16 * MEBI


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_converted_and_are_copies(tmp_path: Path, kind: str, dtype: torch.dtype | None) -> None:
    stored = nn.Linear(300, 40).half().state_dict()
    file = write(stored, tmp_path / f"weights.{kind}")
    with without_weights():
        module = nn.Linear(300, 40)
    fit(module, open_state(file), where=file, dtype=dtype)
    file.write_bytes(bytes(file.stat().st_size))  # in place: a mapped weight would change
    for key, tensor in module.state_dict().items():
        assert tensor.dtype == (dtype or torch.float16) and torch.equal(tensor, stored[key].to(tensor.dtype))
    assert all(weight.requires_grad for weight in module.parameters())


def old(state: dict[str, Tensor], file: Path) -> None:
    torch.save(state, file, _use_new_zipfile_serialization=False)


def compressed(state: dict[str, Tensor], file: Path) -> None:
    torch.save(state, file.with_suffix(".zip"))
    with zipfile.ZipFile(file.with_suffix(".zip")) as plain, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as small:
        for entry in plain.namelist():
            small.writestr(entry.replace("weights", "w"), plain.read(entry))


@pytest.mark.parametrize("written", [old, compressed])
def test_a_pickle_that_cannot_be_mapped_is_read_and_keeps_what_is_released(tmp_path: Path, written: object) -> None:
    wanted = {"a": torch.randn(5000, 3), "b": torch.arange(10_000), "c": torch.randn(64, 64).T}
    written(wanted, tmp_path / "weights.bin")  # type: ignore[operator]
    state = open_state(tmp_path / "weights.bin")
    for key in wanted:
        state.expect(key)
        state.release(key)
    assert all(torch.equal(state[key], tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize("kind", KINDS)
def test_odd_tensors_are_mapped_as_they_are(tmp_path: Path, kind: str) -> None:
    """Empty ones, numbers, bytes that make what follows lie anywhere, and views where the format has them."""
    wanted = {"empty": torch.zeros(0, 3), "number": torch.tensor(2.5), "bytes": torch.arange(3, dtype=torch.uint8)}
    wanted |= {"small": torch.randn(7, dtype=torch.float64), "half": torch.randn(5).half()}
    if kind == "bin":
        wanted |= {"turned": torch.randn(40, 30).T, "spread": torch.randn(1, 9).expand(50, 9)}
    state = open_state(write(wanted, tmp_path / f"weights.{kind}"))
    assert state.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(state[key], tensor)
        state.release(key)
        assert torch.equal(state[key], tensor)


def test_keys_are_renamed_and_tensors_added(tmp_path: Path) -> None:
    file = write({"model.a": torch.ones(2), "head.b": torch.zeros(3)}, tmp_path / "weights.safetensors")
    state = open_state(file).renamed(lambda key: key.removeprefix("model.") if key.startswith("model.") else None)
    more = state.updated({"c": torch.full((4,), 7.0)}, where=Path("elsewhere"))
    assert list(state) == ["a"] and state.file("a") == file
    assert list(more) == ["a", "c"] and more.file("c") == Path("elsewhere")
    more.release("c")
    assert more["c"].tolist() == [7, 7, 7, 7]


class Layer(nn.Module):
    """A layer with one weight of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("steps", torch.zeros(4, dtype=torch.int64))


def fitted(state: Mapping[str, Tensor], **settings: torch.dtype) -> str:
    """Return what is wrong with a state."""
    module = Layer()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        fit(module, state, where=Path("place"), **settings)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    return str(caught.value)


def test_all_that_does_not_fit_is_said_at_once_before_anything_is_read() -> None:
    state = {
        "linear.weight": torch.full((2, 4), torch.nan),
        "linear.bias": torch.zeros(2, dtype=torch.int8),
        "stray": torch.zeros(1),
    }
    said = fitted(state)
    for problem in (
        "place does not fit the model; ",
        "1 missing: steps; ",
        "1 extra: stray; ",
        "1 misshapen: linear.weight is [2, 4], should be [2, 3]; ",
        "1 of a wrong dtype: linear.bias is int8, should be float16 or bfloat16 or float32 or float64",
    ):
        assert problem in said
    assert "finite" not in said


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_a_weight_of_a_wrong_dtype_is_named(dtype: torch.dtype) -> None:
    state = {**Layer().state_dict(), "linear.weight": torch.zeros(2, 3).to(dtype)}
    assert f"linear.weight is {str(dtype).removeprefix('torch.')}, should be float16 or" in fitted(state)


def test_a_buffer_of_numbers_takes_no_other_dtype() -> None:
    said = fitted({**Layer().state_dict(), "steps": torch.zeros(4)})
    assert "1 of a wrong dtype: steps is float32, should be int64" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_weight_that_is_no_number_is_named_with_its_file(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    state = {key: tensor.to(dtype) if key != "steps" else tensor for key, tensor in Layer().state_dict().items()}
    state["linear.bias"] = torch.tensor([1.0, value]).to(dtype)
    file = write(state, tmp_path / "weights.safetensors")
    assert f"{file}: linear.bias is not finite" in fitted(open_state(file))


def test_a_weight_that_the_wanted_dtype_cannot_hold_is_named() -> None:
    state = {**Layer().state_dict(), "linear.bias": torch.tensor([1.0, 1e6])}
    assert "linear.bias is infinite in float16" in fitted(state, dtype=torch.float16)


def meta(**shapes: list[int]) -> dict[str, Tensor]:
    """Return tensors of shapes alone; __ stands for a dot."""
    return {key.replace("__", "."): torch.empty(shape, device="meta") for key, shape in shapes.items()}


NET = meta(conv_in__weight=[320, 4, 3, 3], down_blocks__0__resnets__0__conv1__weight=[320, 320, 3, 3])
KOLORS = NET | meta(encoder_hid_proj__weight=[2048, 4096], add_embedding__linear_1__weight=[1280, 5632])
SDXL = NET | meta(add_embedding__linear_1__weight=[1280, 2816])
INPAINTING = KOLORS | meta(conv_in__weight=[320, 9, 3, 3])
CHATGLM = meta(
    embedding__word_embeddings__weight=[65024, 4096], encoder__layers__0__mlp__dense_4h_to_h__weight=[4096, 13696]
)
NARROW = {key: torch.empty([side // 2 for side in tensor.shape], device="meta") for key, tensor in CHATGLM.items()}
INT8 = {key: tensor.to(torch.int8) for key, tensor in CHATGLM.items()}
FP8 = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in KOLORS.items()}
SCALED = INT8 | meta(encoder__layers__0__mlp__dense_4h_to_h__weight_scale=[4096])
VAE = meta(decoder__conv_in__weight=[512, 4, 3, 3], encoder__down_blocks__0__resnets__0__conv1__weight=[128, 128, 3, 3])


@pytest.mark.parametrize(
    ("wanted", "found", "cause"),
    [
        (KOLORS, SDXL, "this is SDXL's U-Net"),
        (SDXL, KOLORS, "this is Kolors' U-Net"),
        (
            KOLORS,
            KOLORS | meta(add_embedding__linear_1__weight=[1280, 2816]),
            "its pooled text and sizes is 2816 wide, as SDXL has it, not 5632",
        ),
        (KOLORS, KOLORS | meta(encoder_hid_proj__weight=[2048, 768]), "its text is 768 wide, not 4096"),
        (KOLORS, INPAINTING, "an inpainting U-Net of 9 input channels, where 4 are wanted"),
        (INPAINTING, KOLORS, "a plain U-Net of 4 input channels, where 9 are wanted"),
        (KOLORS, KOLORS | meta(controlnet_cond_embedding__conv_in__weight=[16, 3, 3, 3]), "a ControlNet"),
        (KOLORS, meta(unet__down_blocks__1__attentions__0__to_q__lora_A__weight=[4, 640]), "a LoRA"),
        (KOLORS, meta(lora_unet_down_blocks_1_to_q__lora_down__weight=[4, 640]), "a LoRA"),
        (KOLORS, meta(image_proj__latents=[1, 16, 2048]), "an IP-Adapter"),
        (KOLORS, meta(model__diffusion_model__input_blocks__0__0__weight=[320, 4, 3, 3]), "a whole model in one file"),
        (KOLORS, VAE, "this is a VAE"),
        (VAE, KOLORS, "this is a U-Net"),
        (KOLORS, CHATGLM, "this is a ChatGLM text encoder"),
        (CHATGLM, meta(text_model__embeddings__token_embedding__weight=[49408, 768]), "a CLIP text encoder"),
        (CHATGLM, NARROW, "of a model of another size"),
        (CHATGLM, SCALED, "quantised in a form that is not known"),
        (CHATGLM, INT8, "quantised to int8"),
        (KOLORS, FP8, "quantised to float8_e4m3fn"),
        (KOLORS, {f"module.{key}": tensor for key, tensor in KOLORS.items()}, "every key begins with 'module.'"),
        (meta(weight=[2, 3]), meta(weight=[2, 4], bias=[2]), "of another size"),
        (meta(weight=[2, 3], bias=[2]), meta(bias=[2]), None),
    ],
)
def test_the_likeliest_cause_is_said(wanted: dict[str, Tensor], found: dict[str, Tensor], cause: str | None) -> None:
    said = likeliest_cause(wanted, found)
    assert said is None if cause is None else cause in str(said)


def test_the_cause_ends_the_complaint(tmp_path: Path) -> None:
    file = write({"a.lora_down.weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    assert fitted(open_state(file)).endswith("; this is a LoRA, which is added to a model and is none itself")


def test_a_state_is_a_mapping_of_tensors(tmp_path: Path) -> None:
    file = write(nn.Linear(2, 3).state_dict(), tmp_path / "weights.safetensors")
    state = open_state(file)
    assert isinstance(state, State) and len(state) == 2 and "bias" in state and "other" not in state
    with pytest.raises(KeyError):
        state["other"]
