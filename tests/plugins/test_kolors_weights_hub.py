"""Weights fetched from a server that speaks as much of the Hub's language as that takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import yaml
from kolors_chatglm3.config import ChatGLM3
from kolors_sdxl.config import SDXLVAE, SDXLUNet
from pydantic import TypeAdapter, ValidationError

from kolors_kernel import BuildContext
from kolors_kernel.component import RecipePath
from kolors_weights.places import HubPlace, WeightsPath

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STEM = "diffusion_pytorch_model"
SHARDS = {f"layer.{n}": f"model.fp16-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
FILES = {
    "config.json": b"{}",
    "model_index.json": b"{}",
    "unet/config.json": b'{"of": "unet"}',
    f"unet/{STEM}.safetensors": b"full" * 50_000,
    f"unet/{STEM}.fp16.safetensors": b"half" * 50_000,
    "text_encoder/config.json": b'{"of": "encoder"}',
    "text_encoder/model.safetensors.index.fp16.json": json.dumps({"weight_map": SHARDS}).encode(),
    **{f"text_encoder/{name}": name.encode() * 1000 for name in SHARDS.values()},
    "text_encoder/model.fp16-00009-of-00009.safetensors": b"of another variant",
    "tokenizer/tokenizer.model": b"pieces",
    "bare/readme.txt": b"nothing here",
}
ENCODER = ["find_weights", "hf://some/kolors/text_encoder", "model", "pytorch_model"]


@dataclass
class Hub:
    """The Hub's files, what breaks, and what was asked of it: (method, path, range)."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    breaks_off: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """Return the files that were asked for, in order."""
        return [
            path.partition("/resolve/main/")[2]
            for method, path, _ in self.asked
            if method == "GET" and "resolve" in path
        ]


class Handler(BaseHTTPRequestHandler):
    """Answers about models: what there is of one, and its files, in ranges too."""

    hub: ClassVar[Hub]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.hub.asked.append((self.command, self.path, self.headers.get("Range")))
        found = re.fullmatch(r"/api/models/(\w+/\w+)(/revision/(.+))?", self.path)
        file = re.fullmatch(r"/(\w+/\w+)/resolve/([^/]+)/(.+)", self.path)
        repo, revision = (found[1], found[3]) if found else (file[1], file[2]) if file else ("", "")
        if repo == "some/gated":
            return self.refuse(403, "GatedRepo")
        if repo != "some/kolors":
            return self.refuse(401, "RepoNotFound")
        if revision not in (None, "main", "refs%2Fpr%2F8", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if found:
            siblings = [{"rfilename": name} for name in self.hub.files]
            return self.send(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())
        assert file
        if file[3] not in self.hub.files:
            return self.refuse(404, "EntryNotFound")
        self.send(self.hub.files[file[3]], name=file[3])

    def refuse(self, code: int, reason: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content: bytes, name: str = "") -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start : self.hub.breaks_off.pop(name, len(content))])
            if name and start == 0:
                self.close_connection = True


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as hub:
        yield hub


CLIENT = """
import json, resource, sys
from kolors_kernel.errors import KolorsError
from kolors_weights import places, reading

for line in json.loads(sys.argv[1]):
    function, place, *rest = line
    try:
        found = getattr(reading, function)(places.HubPlace.parse(place), *rest)
        print(json.dumps(found if isinstance(found, dict) else {"file": found and str(found)}))
    except KolorsError as error:
        print(json.dumps({"error": type(error).__name__, "said": str(error)}))
"""


def environment(home: Path, url: str, **more: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    said = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return {**plain, **said, "HF_HOME": str(home), "HF_ENDPOINT": url, **more}


def ask(url: str, home: Path, *lines: list[str], **more: str) -> list[dict[str, Any]]:
    """Return what a process of its own finds, since the Hub's client reads its environment once."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", CLIENT, json.dumps(lines)]
    run = subprocess.run(command, env=environment(home, url, **more), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def net(place: str = "hf://some/kolors/unet") -> list[str]:
    return ["find_weights", place, STEM]


def test_checking_fetches_the_config_alone_and_loading_one_variant(hub: Hub, tmp_path: Path) -> None:
    (config,) = ask(hub.url, tmp_path, ["read_config", "hf://some/kolors/text_encoder"])
    assert config == {"of": "encoder"} and hub.fetched() == ["text_encoder/config.json"]
    weights, tokenizer, full = ask(
        hub.url,
        tmp_path,
        ENCODER,
        ["find_file", "hf://some/kolors/text_encoder", "tokenizer.model", "../tokenizer/tokenizer.model"],
        net(),
    )
    fetched = hub.fetched()
    assert sorted(fetched[1:]) == sorted(
        [
            "text_encoder/model.safetensors.index.fp16.json",
            *(f"text_encoder/{name}" for name in SHARDS.values()),
            "tokenizer/tokenizer.model",
            f"unet/{STEM}.safetensors",
        ]
    )
    index = Path(weights["file"])
    assert all((index.parent / name).read_bytes() == FILES[f"text_encoder/{name}"] for name in SHARDS.values())
    assert Path(tokenizer["file"]).read_bytes() == b"pieces"
    assert Path(full["file"]).read_bytes() == FILES[f"unet/{STEM}.safetensors"]


def test_a_transfer_that_breaks_off_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    name = f"unet/{STEM}.safetensors"
    hub.files[name] = os.urandom(24_000_000)  # more than twice what the client takes at a time
    hub.breaks_off[name] = 15_000_000
    (found,) = ask(hub.url, tmp_path, net())
    assert Path(found["file"]).read_bytes() == hub.files[name]
    ranges = [asked for method, path, asked in hub.asked if method == "GET" and path.endswith(name)]
    assert ranges[0] is None and len(ranges) == 2
    assert re.fullmatch(r"bytes=\d+-", str(ranges[1])) and 0 < int(str(ranges[1])[6:-1]) <= 15_000_000


def test_what_was_fetched_is_not_fetched_again_and_serves_without_the_hub(tmp_path: Path) -> None:
    lines = [["read_config", "hf://some/kolors/unet"], ENCODER, net()]
    with serving(Hub()) as hub:
        before = ask(hub.url, tmp_path, *lines)
        hub.asked.clear()
        assert ask(hub.url, tmp_path, *lines) == before
        assert not hub.fetched()
    assert ask(hub.url, tmp_path, *lines) == before  # the server is gone
    assert ask(hub.url, tmp_path, *lines, HF_HUB_OFFLINE="1") == before


def test_what_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    places = {
        "hf://some/missing/unet": ("WeightsError", "no repository hf://some/missing, or it is private"),
        "hf://some/gated/unet": ("WeightsError", "hf://some/gated asks for permission"),
        "hf://some/kolors@v9/unet": ("WeightsError", "hf://some/kolors has no revision 'v9'"),
        "hf://some/kolors": ("WeightsError", "hf://some/kolors has no weights: looked for diffusion_pytorch_model"),
    }
    answers = ask(hub.url, tmp_path, *map(net, places))
    for answer, (error, said) in zip(answers, places.values(), strict=True):
        assert answer["error"] == error and said in answer["said"]
    del hub.files["config.json"]
    whole, bare = ask(hub.url, tmp_path, ["read_config", "hf://some/kolors"], ["read_config", "hf://some/kolors/bare"])
    assert "hf://some/kolors is a whole model" in whole["said"] and "hf://some/kolors/unet" in whole["said"]
    assert bare["said"] == "hf://some/kolors/bare has no config.json"


def test_without_the_hub_and_without_a_cache_both_are_named(tmp_path: Path) -> None:
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        (answer,) = ask("http://127.0.0.1:9", tmp_path, ["read_config", "hf://some/kolors/unet"], **more)
        assert answer["error"] == "RunError"
        assert "hf://some/kolors/unet: the Hugging Face Hub cannot be reached" in answer["said"]
        assert str(tmp_path / "hub") in answer["said"] and "config.json" in answer["said"]


def test_without_the_hub_a_shard_that_the_cache_lacks_is_named(tmp_path: Path) -> None:
    with serving(Hub()) as hub:
        (found,) = ask(hub.url, tmp_path, ENCODER)
    (Path(found["file"]).parent / SHARDS["layer.2"]).unlink()
    (answer,) = ask(hub.url, tmp_path, ENCODER)
    assert answer["error"] == "RunError" and SHARDS["layer.2"] in answer["said"]


def test_a_full_disk_is_said(hub: Hub, tmp_path: Path) -> None:
    limited = CLIENT.replace("for line", "resource.setrlimit(resource.RLIMIT_FSIZE, (90_000,) * 2)\nfor line", 1)
    run = subprocess.run(
        [sys.executable, "-c", limited, json.dumps([net()])],
        env=environment(tmp_path, hub.url),
        capture_output=True,
        text=True,
        timeout=120,
    )
    answer = json.loads(run.stdout)
    assert answer["error"] == "RunError" and "the disk of the Hub's cache is full; HF_HUB_CACHE sets" in answer["said"]


def test_a_revision_is_fetched_as_such(hub: Hub, tmp_path: Path) -> None:
    (config,) = ask(hub.url, tmp_path, ["read_config", f"hf://some/kolors@{COMMIT}/unet"])
    assert config == {"of": "unet"}
    assert any(f"/resolve/{COMMIT}/unet/config.json" in path for _, path, _ in hub.asked)


def test_without_the_package_the_line_says_how_to_install_it(tmp_path: Path) -> None:
    hidden = CLIENT.replace("import json", "import sys; sys.modules['huggingface_hub'] = None\nimport json", 1)
    run = subprocess.run(
        [sys.executable, "-c", hidden, json.dumps([net()])],
        capture_output=True,
        text=True,
        env=environment(tmp_path, ""),
    )
    assert json.loads(run.stdout) == {
        "error": "MissingDependency",
        "said": "'hf://some/kolors/unet' needs the package 'huggingface_hub', which is not installed: "
        "pip install 'kolors-kernel[hub]'",
    }


def test_a_run_draws_from_the_hub_and_writes_down_where_from(
    hub: Hub, tmp_path: Path, tiny_drawing: Mapping[str, Any]
) -> None:
    SDXLVAE.tiny().build(BuildContext()).save(tmp_path / "vae")
    hub.files |= {f"vae/{file.name}": file.read_bytes() for file in (tmp_path / "vae").iterdir()}
    recipe = {**tiny_drawing, "autoencoder": {"type": "sdxl_vae", "path": "hf://some/kolors/vae"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [
        sys.executable,
        "-m",
        "kolors_kernel",
        "run",
        str(tmp_path / "recipe.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]
    run = subprocess.run(command, env=environment(tmp_path, hub.url), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    written = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())
    assert written["autoencoder"]["path"] == "hf://some/kolors/vae"
    assert (tmp_path / "out/000.png").is_file()


@pytest.fixture
def tiny_drawing() -> Mapping[str, Any]:
    return {
        "type": "text_to_image",
        "text_encoder": ChatGLM3.tiny().model_dump(mode="json"),
        "backbone": SDXLUNet.tiny().model_dump(mode="json"),
        "schedule": {"type": "scaled_linear"},
        "solver": {"type": "euler", "steps": 1},
        "height": 16,
        "width": 16,
        "prompts": ["苹果"],
    }


ADAPTER: TypeAdapter[Any] = TypeAdapter(WeightsPath)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hf://Kwai-Kolors/Kolors", HubPlace("Kwai-Kolors/Kolors")),
        ("hf://Kwai-Kolors/Kolors/unet", HubPlace("Kwai-Kolors/Kolors", None, "unet")),
        ("hf://Kwai-Kolors/Kolors@v1.0/a/b", HubPlace("Kwai-Kolors/Kolors", "v1.0", "a/b")),
        ("hf://Kwai-Kolors/Kolors@refs/pr/8/text_encoder", HubPlace("Kwai-Kolors/Kolors", "refs/pr/8", "text_encoder")),
        ("hf://o_1/r.x/unet/net.safetensors", HubPlace("o_1/r.x", None, "unet/net.safetensors")),
    ],
)
def test_a_place_on_the_hub_is_its_text(text: str, place: HubPlace) -> None:
    found = ADAPTER.validate_python(RecipePath(text, Path("/somewhere")))
    assert found == place and str(found) == text
    assert ADAPTER.validate_python(ADAPTER.dump_python(found)) == found
    assert ADAPTER.dump_json(found) == json.dumps(text).encode()
    assert ADAPTER.validate_json(ADAPTER.dump_json(found)) == found


@pytest.mark.parametrize(
    "text", ["hf://", "hf://one", "hf://a/b@", "hf://a/b@c@d", "hf://a/b/../../c", "hf://a b/c", "hf:///a/b"]
)
def test_a_text_of_another_form_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValidationError, match=re.escape("is not of the form hf://OWNER/REPO[@REVISION][/FOLDER]")):
        ADAPTER.validate_python(text)


def test_a_local_path_is_one_as_ever(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    assert ADAPTER.validate_python(RecipePath("unet", tmp_path)) == tmp_path / "unet"
    with pytest.raises(ValidationError, match="there is no file or folder"):
        ADAPTER.validate_python(str(tmp_path / "other"))
