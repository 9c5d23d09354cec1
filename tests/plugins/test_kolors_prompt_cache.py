from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kolors_prompt_cache.config import PromptCache
from kolors_prompt_cache.encoder import PromptCacheEncoder
from kolors_prompt_cache.identity import identity
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from kolors_kernel import BuildContext, discover
from kolors_kernel.component import ExistingPath
from kolors_kernel.errors import RecipeError, RunError
from kolors_kernel.kinds import TextEncoderConfig
from kolors_kernel.values import Conditioning, ConditioningSpec

CAT, DOG, LONG = "一只戴墨镜的猫", "a dog", "a very long prompt that is cut"


class Letters(TextEncoderConfig):
    """Gives a row a letter, padded on the left to the longest of the batch, from what its file says."""

    type: Literal["letters"] = "letters"
    path: ExistingPath | None = None
    scale: float = 1.0
    bias: bool = True
    extra: bool = False
    built: ClassVar[list[Encoder]] = []

    def spec(self) -> ConditioningSpec:
        return ConditioningSpec(tokens=64, width=3, pooled=2)

    def build(self, ctx: BuildContext) -> Encoder:
        made = Encoder(self, getattr(torch, ctx.dtype))
        self.built.append(made)
        return made


class Encoder:
    def __init__(self, config: Letters, dtype: torch.dtype) -> None:
        self.config, self.dtype, self.calls, self.frozen = config, dtype, list[list[str]](), False
        self.offset = float(len(config.path.read_bytes()) if config.path and config.path.is_file() else 0)
        self.weight = torch.randn(3)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self.calls.append(list(prompts))
        for prompt in prompts:
            if len(prompt) > 20:
                warnings.warn(f"{prompt!r} is cut", UserWarning, stacklevel=2)
        rows = [self.rows(prompt[:20]) for prompt in prompts]
        most = max(map(len, rows))
        if not self.config.bias:
            most = 20
        tokens = torch.stack([F.pad(each, (0, 0, most - len(each), 0), value=7.0) for each in rows])
        bias = torch.stack([F.pad(torch.arange(len(r)) / 8, (most - len(r), 0), value=-math.inf) for r in rows])
        pooled = torch.stack([row.sum(0)[:2] for row in rows])
        extra = {"depth": 1} if self.config.extra else {}
        return Conditioning(tokens, pooled, bias if self.config.bias else None, extra)

    def rows(self, text: str) -> Tensor:
        codes = torch.tensor([1.0, *map(ord, text)])[:, None] * self.config.scale + self.offset
        return (codes * self.weight).to(self.dtype)

    def freeze(self) -> None:
        self.frozen = True

    def report(self) -> Mapping[str, str]:
        return {"text encoder": "letters"}


@pytest.fixture(autouse=True)
def _built() -> None:
    Letters.built.clear()


def cache(folder: Path, of: TextEncoderConfig | None = None, *, dtype: str = "float32", **more: Any) -> Any:
    config = PromptCache(of=of or Letters(), folder=folder, **more)
    return config.build(BuildContext("cpu", dtype, folder / "run"))


def encoded() -> list[list[str]]:
    """Return the batches that the wrapped encoders were asked for."""
    return [batch for encoder in Letters.built for batch in encoder.calls]


def attended(found: Conditioning) -> list[Tensor]:
    """Return each prompt's rows with its biases, the padding left out."""
    assert found.key_bias is not None
    both = torch.cat([found.tokens, found.key_bias.unsqueeze(-1)], dim=-1)
    return [rows[bias > -math.inf] for rows, bias in zip(both, found.key_bias, strict=True)]


def assert_same(found: Conditioning, wanted: Conditioning) -> None:
    assert torch.equal(found.pooled, wanted.pooled)
    assert found.tokens.dtype == wanted.tokens.dtype
    assert all(map(torch.equal, attended(found), attended(wanted)))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_a_known_prompt_is_the_same_to_the_bit_and_the_encoder_is_not_built(tmp_path: Path) -> None:
    prompts = [CAT, DOG, CAT]
    first = cache(tmp_path).encode(prompts)
    wanted = Letters.built[0].encode(prompts)
    Letters.built.clear()
    again = cache(tmp_path)
    for found in (first, again.encode(prompts)):
        assert_same(found, wanted)
    assert_same(again.encode([DOG]), Conditioning(wanted.tokens[1:2], wanted.pooled[1:2], wanted.key_bias[1:2]))
    assert not Letters.built
    assert again.encode([DOG]).tokens.shape[1] == 1 + len(DOG)


def test_what_is_missing_is_encoded_in_one_pass_and_only_once(tmp_path: Path) -> None:
    encoder = cache(tmp_path)
    encoder.encode([DOG])
    encoder.encode(["", DOG, CAT, ""])
    assert encoded() == [[DOG], ["", CAT]]
    assert len(files(tmp_path)) == 3


def test_an_encoder_without_a_key_bias_has_none_after_it(tmp_path: Path) -> None:
    of = Letters(bias=False)
    found, again = cache(tmp_path, of).encode([CAT, DOG]), cache(tmp_path, of).encode([CAT, DOG])
    assert found.key_bias is None and again.key_bias is None
    assert torch.equal(again.tokens, Letters.built[0].encode([CAT, DOG]).tokens)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chatglm3_is_the_same_with_a_cache_and_without(tmp_path: Path, dtype: str) -> None:
    of, prompts = discover().find("text_encoder", "chatglm3").tiny(), [CAT, "", DOG]
    assert isinstance(of, TextEncoderConfig)
    with torch.no_grad():
        wanted = of.build(BuildContext("cpu", dtype)).encode(prompts)
    for _ in range(2):
        found = cache(tmp_path, of, dtype=dtype).encode(prompts)
        torch.testing.assert_close(found.pooled, wanted.pooled, rtol=0, atol=0)
        if wanted.key_bias is not None:
            assert_same(found, wanted)
        else:
            assert torch.equal(found.tokens, wanted.tokens)


def rewrite(file: Path, content: bytes) -> None:
    """Change a file and leave its times as they were."""
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte of the config": lambda f: rewrite(f / "encoder/config.json", b"2"),
    "the length of the weights": lambda f: rewrite(f / "encoder/weights.bin", bytes(5 * 2**20 + 1)),
    "all of the weights": lambda f: rewrite(f / "encoder/weights.bin", b"a" * 5 * 2**20),
    "the end of the weights": lambda f: rewrite(f / "encoder/weights.bin", bytes(5 * 2**20 - 1) + b"a"),
    "one byte anywhere": lambda f: (f / "encoder/weights.bin").write_bytes(bytes(70_000) + b"a" + bytes(5172879)),
    "a new file": lambda f: (f / "encoder/adapter.bin").write_bytes(b"a"),
    "a file less": lambda f: (f / "encoder/config.json").unlink(),
    "a name": lambda f: (f / "encoder/config.json").rename(f / "encoder/config2.json"),
    "the tokenizer beside it": lambda f: rewrite(f / "tokenizer/tokenizer.model", b"b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_is_not_served_from_the_cache(tmp_path: Path, change: str) -> None:
    for name, content in {"encoder/config.json": b"1", "tokenizer/tokenizer.model": b"a"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    (tmp_path / "encoder/weights.bin").write_bytes(bytes(5 * 2**20))
    of = Letters(path=tmp_path / "encoder")
    for _ in range(2):
        cache(tmp_path / "cache", of).encode([DOG])
    assert len(encoded()) == 1
    CHANGES[change](tmp_path)
    cache(tmp_path / "cache", of).encode([DOG])
    assert len(encoded()) == 2


@pytest.mark.parametrize(
    ("of", "dtype"),
    [({"scale": 2.0}, "float32"), ({"bias": False}, "float32"), ({}, "bfloat16"), ({}, "float64")],
    ids=["a setting", "a switch", "bfloat16", "float64"],
)
def test_other_settings_and_another_dtype_are_other_results(tmp_path: Path, of: Any, dtype: str) -> None:
    cache(tmp_path).encode([DOG])
    cache(tmp_path, Letters(**of), dtype=dtype).encode([DOG])
    assert len(encoded()) == 2


def test_an_encoder_found_elsewhere_with_the_same_contents_is_the_same(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_bytes(b"abc")
        os.utime(tmp_path / name / "model.bin", (10, 10))
        cache(tmp_path / "cache", Letters(path=tmp_path / name / "model.bin")).encode([DOG])
    assert len(encoded()) == 1


def test_another_file_of_the_same_folder_is_another_encoder(tmp_path: Path) -> None:
    for name in ("config.json", "a.bin", "b.bin"):
        (tmp_path / name).write_bytes(b"same")
    cache(tmp_path / "cache", Letters(path=tmp_path / "a.bin")).encode([DOG])
    cache(tmp_path / "cache", Letters(path=tmp_path / "b.bin")).encode([DOG])
    assert len(encoded()) == 2
    (tmp_path / "config.json").write_bytes(b"new")
    cache(tmp_path / "cache", Letters(path=tmp_path / "a.bin")).encode([DOG])
    assert len(encoded()) == 3


def test_a_place_on_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "hf://owner/repo/text_encoder"
    of = discover().find("text_encoder", "chatglm3").model_validate({"path": place})
    snapshots = tmp_path / "models--owner--repo/snapshots"
    for commit in ("abc", "def"):
        (snapshots / commit / "text_encoder").mkdir(parents=True)
        (snapshots / commit / "text_encoder/config.json").write_bytes(b"{}")

    def digest(commit: str) -> str:
        file = snapshots / commit / "text_encoder/config.json"
        monkeypatch.setattr("kolors_prompt_cache.identity.find_file", lambda place, *names: file)
        return identity(of, dtype="float32", seed=0)  # type: ignore[arg-type]

    first = digest("abc")
    (snapshots / "abc/text_encoder/model.safetensors").write_bytes(b"fetched later")
    assert digest("abc") == first
    assert digest("def") != first


def test_random_weights_are_those_of_torchs_seed_and_its_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    wanted, encoder = Letters().build(BuildContext()).encode([DOG]), None
    for seed, batches in ((3, 1), (3, 1), (4, 2)):
        torch.manual_seed(seed)
        encoder = cache(tmp_path)
        torch.rand(5)
        state = torch.get_rng_state()
        found = encoder.encode([DOG])
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(found.pooled, wanted.pooled) == (seed == 3)
        assert len(encoded()) - 1 == batches


def test_files_that_change_after_their_name_was_made_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1")
    encoder = cache(tmp_path / "cache", Letters(path=tmp_path / "weights"))
    encoder.encode([CAT])
    kept = files(tmp_path / "cache")
    (tmp_path / "weights").write_bytes(b"22")
    with pytest.raises(RunError, match=r"files of text_encoder 'letters' have changed during this run"):
        encoder.encode([DOG])
    assert files(tmp_path / "cache") == kept


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda whole: whole[:-5],
    "cut in its header": lambda whole: whole[:30],
    "empty": lambda whole: b"",
    "longer": lambda whole: whole + b"\0",
    "a bit of its numbers": lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
    "a letter of its warnings": lambda whole: whole.replace(b"[]", b"{}"),
    "no safetensors": lambda whole: b"\xff" * 64,
    "another file of that format": lambda whole: b"\x02" + bytes(7) + b"{}",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    wanted = cache(tmp_path).encode([DOG])
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    assert DAMAGES[damage](whole) != whole
    file.write_bytes(DAMAGES[damage](whole))
    encoder = cache(tmp_path)
    assert_same(encoder.encode([DOG]), wanted)
    assert str(file) in caplog.text and "damaged" in caplog.text
    assert "encoded 1, 1 of them since their files were damaged" in encoder.report()["prompt cache"]
    assert file.read_bytes() == whole
    assert cache(tmp_path).report()["prompt cache"].startswith("found 0 of 0")


def test_a_file_under_the_name_of_another_prompt_is_damaged(tmp_path: Path) -> None:
    wanted = cache(tmp_path).encode([DOG])
    (dog,) = files(tmp_path)
    cache(tmp_path).encode([CAT])
    (cat,) = set(files(tmp_path)) - {dog}
    dog.write_bytes(cat.read_bytes())
    assert_same(cache(tmp_path).encode([DOG]), wanted)


def test_many_may_read_and_write_one_folder_at_a_time(tmp_path: Path) -> None:
    of, prompts = Letters(), [f"{number}" * 5 for number in range(10)]
    torch.manual_seed(0)
    wanted = of.build(BuildContext()).encode(prompts)

    def work(turn: int) -> Conditioning:
        if turn % 3 == 0:
            for file in files(tmp_path):
                file.unlink(missing_ok=True)
        found: Conditioning = cache(tmp_path).encode(prompts)
        return found

    with ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
        for found in pool.map(work, range(40)):
            assert_same(found, wanted)
    assert len(list(tmp_path.iterdir())) <= 10


def test_more_than_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"text_encoder 'letters' gives depth beside the text"):
        cache(tmp_path, Letters(extra=True)).encode([DOG])


@pytest.mark.parametrize("prompts", [DOG, [], [3], [DOG, None]])
def test_what_is_no_list_of_texts_is_refused(tmp_path: Path, prompts: Any) -> None:
    with pytest.raises(RecipeError, match="list of texts"):
        cache(tmp_path).encode(prompts)


def test_half_a_character_is_refused_by_the_encoder(tmp_path: Path) -> None:
    of = discover().find("text_encoder", "chatglm3").tiny()
    assert isinstance(of, TextEncoderConfig)
    with pytest.raises(RecipeError, match="half a character"):
        cache(tmp_path, of).encode(["a\ud800"])


def test_a_prompt_that_was_cut_is_said_to_be_cut_each_time_and_no_other_is(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.warns(UserWarning) as said:
            cache(tmp_path).encode([DOG, LONG, CAT])
        assert [str(each.message) for each in said] == [f"{LONG!r} is cut"]
        assert cache(tmp_path).encode([DOG, CAT]).pooled.shape == (2, 2)
    assert encoded() == [[DOG, LONG, CAT], [DOG], [LONG], [CAT]]


def test_chatglm3_says_on_a_hit_what_it_cuts(tmp_path: Path) -> None:
    of = discover().find("text_encoder", "chatglm3").tiny()
    assert isinstance(of, TextEncoderConfig)
    for _ in range(2):
        with pytest.warns(UserWarning, match="its last 370 are cut"):
            cache(tmp_path, of).encode(["a" * 400])


def test_results_have_no_gradients_and_training_it_is_refused(tmp_path: Path) -> None:
    of = discover().find("text_encoder", "chatglm3").tiny()
    assert isinstance(of, TextEncoderConfig)
    found = cache(tmp_path, of).encode([DOG])
    assert not found.tokens.requires_grad and not found.pooled.requires_grad
    train = discover().find("recipe", "train").tiny().model_dump(mode="json")
    train["text_encoder"] = {"type": "cached", "of": train["text_encoder"], "folder": str(tmp_path)}
    train["stages"][0]["trains"] = ["text_encoder"]
    recipe = discover().find("recipe", "train").model_validate(train)
    with pytest.raises(RecipeError, match="text_encoder 'cached' cannot be trained"):
        recipe.build(BuildContext(out=tmp_path))  # type: ignore[attr-defined]


@pytest.mark.parametrize("early", [True, False])
def test_freezing_reaches_the_encoder_whenever_it_is_built(tmp_path: Path, early: bool) -> None:
    encoder = cache(tmp_path)
    if early:
        encoder.freeze()
        assert not Letters.built
    encoder.encode([DOG])
    assert Letters.built[0].frozen == early
    encoder.freeze()
    assert Letters.built[0].frozen


def test_the_report_says_what_was_found_and_what_was_not(tmp_path: Path) -> None:
    first, second = cache(tmp_path), cache(tmp_path)
    first.encode([DOG, CAT])
    second.encode([CAT])
    assert first.report() == {
        "prompt cache": f"found 0 of 2 prompts in {tmp_path}, encoded 2",
        "text encoder": "letters",
    }
    assert second.report() == {
        "prompt cache": f"found 1 of 1 prompts in {tmp_path}, encoded 0; the text encoder was not loaded"
    }


def test_a_full_folder_loses_what_was_not_asked_for_longest_and_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    encoder = cache(tmp_path)
    for number, prompt in enumerate("abcd"):
        encoder.encode([prompt])
        (new,) = (file for file in files(tmp_path) if file.stat().st_mtime > 2e8)
        os.utime(new, (1e8 + number, 1e8 + number))
    encoder.encode(["a"])
    size = files(tmp_path)[0].stat().st_size
    (tmp_path / "notes.txt").write_bytes(bytes(10 * size))
    cache(tmp_path, keep=3 * size).encode(["e"])
    before = len(encoded())
    encoder.encode(["a", "d", "e"])
    assert len(encoded()) == before
    encoder.encode(["b", "c"])
    assert Letters.built[0].calls[-1] == ["b", "c"]
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize(("said", "place"), [("kept", "kept"), ("", "home/.cache"), (None, "home/.cache")])
def test_the_default_folder_is_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, place: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if said is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / said) if said else "relative")
    encoder = PromptCache(of=Letters()).build(BuildContext(out=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
    encoder.encode([DOG])
    assert files(tmp_path / place / "kolors/prompts")


def test_tiny_keeps_its_prompts_in_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    PromptCache.tiny().build(BuildContext(out=tmp_path / "run")).encode([DOG])
    assert files(tmp_path / "run/prompts")
    assert not (tmp_path / "cache").exists()


def test_a_cache_of_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="of is a prompt cache itself"):
        PromptCache(of=PromptCache(of=Letters()))


def test_a_size_is_read_in_words() -> None:
    config = PromptCache.model_validate({"of": {"type": "chatglm3"}, "keep": "500MB"})
    assert config.keep == 500_000_000
    assert json.loads(config.model_dump_json())["keep"] == 500_000_000


def test_a_recipe_draws_the_same_picture_and_the_second_time_without_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = discover().find("recipe", "text_to_image").tiny().model_dump(mode="json")
    cached = {
        **plain,
        "text_encoder": {"type": "cached", "of": plain["text_encoder"], "folder": str(tmp_path / "kept")},
    }
    for name, data in (("plain", plain), ("first", cached), ("second", cached)):
        if name == "second":
            monkeypatch.setattr(PromptCacheEncoder, "_built", lambda self: pytest.fail("the encoder was built"))
        recipe: Any = discover().find("recipe", "text_to_image").model_validate(data)
        recipe.build(BuildContext(out=tmp_path / name)).run()
    plainly, first, second = (
        np.asarray(Image.open(tmp_path / n / "000.png"), int) for n in ("plain", "first", "second")
    )
    assert np.array_equal(first, second)
    assert abs(plainly - first).max() <= 1
