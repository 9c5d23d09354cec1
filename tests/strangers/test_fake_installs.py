from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from kolors_kernel import cli, discover, load_recipe
from kolors_kernel.errors import PluginError
from kolors_kernel.testing import TextEncoderContract

ENCODER = '''
    """A stranger's text encoder."""
    from typing import Literal
    from kolors_kernel import hookimpl
    from kolors_kernel.kinds import TextEncoderConfig
    from kolors_kernel.values import ConditioningSpec

    class Zeros(TextEncoderConfig):
        """Says nothing."""

        type: Literal["{type}"] = "{type}"
        width: int = 8
        """Length of each vector."""

        def spec(self):
            return ConditioningSpec(4, self.width, self.width)

        def build(self, ctx):
            return object()

    @hookimpl
    def kolors_components():
        return [Zeros]
'''
RECIPE = """
type: text_to_image
text_encoder: {type: TYPE}
autoencoder: {type: sdxl_vae}
backbone: {type: sdxl_unet}
schedule: {type: scaled_linear}
height: 64
width: 64
prompts: [a]
"""


def recipe(folder: Path, name: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("TYPE", name), encoding="utf-8")
    return path


def test_an_installed_stranger_is_found_like_our_own(install, tmp_path: Path) -> None:
    install("zeros", ENCODER.format(type="stranger_zeros"))
    registry = discover()
    assert registry.plugins["zeros"].distribution == "stranger-zeros"
    assert registry.plugins["zeros"].problem is None
    assert registry.provided_by["text_encoder", "stranger_zeros"] == "zeros"
    assert load_recipe(recipe(tmp_path, "stranger_zeros")).text_encoder.width == 8  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_package_at_all", "No module named 'no_such_package_at_all'"),
        ("raise RuntimeError('wrong moon')", "RuntimeError: wrong moon"),
        ("def broken(:", "SyntaxError"),
        (
            "from kolors_kernel import hookimpl\n@hookimpl\ndef kolors_component():\n    return []",
            "kolors_component",
        ),
        (
            "from kolors_kernel import hookimpl\n@hookimpl\ndef kolors_components():\n    raise ValueError('inside')",
            "ValueError: inside",
        ),
        (
            "from kolors_kernel import hookimpl\n@hookimpl\ndef kolors_components():\n    return [int]",
            "is not a component's config class",
        ),
        (
            "from kolors_kernel import hookimpl\n@hookimpl\ndef kolors_components(registry):\n    return []",
            "registry",
        ),
    ],
)
def test_a_broken_plugin_is_kept_apart_and_named(
    install, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, said: str
) -> None:
    install("broken", source)
    assert cli.main(["plugins"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("broken"))
    assert "not in use" in line
    assert said in line
    assert discover().types("solver"), "the other plugins go on working"
    assert cli.main(["check", str(recipe(tmp_path, "nowhere"))]) == 2
    error = capsys.readouterr().err
    assert "no text_encoder is called 'nowhere'" in error
    assert "plugin 'broken' is not in use" in error
    assert said in error


def test_a_class_without_build_is_named_with_what_it_lacks(install) -> None:
    source = ENCODER.format(type="lazy").replace("def build(self, ctx):", "def construct(self, ctx):")
    install("lazy", source)
    assert "Zeros does not define build" in str(discover().plugins["lazy"].problem)


def test_two_plugins_with_one_component_are_an_error_that_names_both(
    install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("first", ENCODER.format(type="same"))
    install("second", ENCODER.format(type="same"))
    with pytest.raises(PluginError, match="'first' and 'second' both provide the text_encoder 'same'"):
        discover()
    assert cli.main(["components"]) == 2
    assert "KOLORS_DISABLE_PLUGINS=second" in capsys.readouterr().err
    monkeypatch.setenv("KOLORS_DISABLE_PLUGINS", "second")
    discover.cache_clear()
    assert discover().provided_by["text_encoder", "same"] == "first"


def test_a_stranger_may_not_take_the_place_of_our_own(install) -> None:
    install("usurper", ENCODER.format(type="chatglm3"))
    with pytest.raises(PluginError, match="'chatglm3' and 'usurper' both provide the text_encoder 'chatglm3'"):
        discover()


def test_two_plugins_of_one_name_are_an_error_even_if_one_is_broken(install) -> None:
    install("one", "raise RuntimeError('broken')", entry="twin")
    install("two", ENCODER.format(type="two"), entry="twin")
    with pytest.raises(PluginError, match=r"two plugins are called 'twin': stranger-(one|two) and stranger-(one|two)"):
        discover()


def test_a_disabled_plugin_is_listed_and_not_imported(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("loud", "raise SystemExit('imported all the same')")
    monkeypatch.setenv("KOLORS_DISABLE_PLUGINS", " loud , nobody ,")
    discover.cache_clear()
    registry = discover()
    assert registry.plugins["loud"].problem == "disabled by KOLORS_DISABLE_PLUGINS"
    assert registry.plugins["nobody"].problem == "named in KOLORS_DISABLE_PLUGINS, but not installed"
    assert "stranger_loud" not in sys.modules


def test_a_plugin_of_another_api_is_listed_and_not_imported(
    install, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    install("future", "raise SystemExit('imported all the same')", group="kolors.v2")
    problem = discover().plugins["future"].problem
    assert problem == "written for API 2, this kernel speaks API 1"
    assert "stranger_future" not in sys.modules
    assert cli.main(["plugins"]) == 0
    assert problem in capsys.readouterr().out
    assert cli.main(["check", str(recipe(tmp_path, "nowhere"))]) == 2
    assert problem in capsys.readouterr().err


def test_a_stranger_may_bring_recipes_and_a_kind_of_its_own(install, tmp_path: Path) -> None:
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "from_afar.yaml").write_text(RECIPE.replace("TYPE", "chatglm3"), encoding="utf-8")
    install(
        "afar",
        f'''
        from pathlib import Path
        from typing import ClassVar, Literal
        from kolors_kernel import ComponentConfig, hookimpl

        class UpscalerConfig(ComponentConfig):
            """Makes pictures larger."""

            kind: ClassVar[str] = "upscaler"

        class Twice(UpscalerConfig):
            """Doubles them."""

            type: Literal["twice"] = "twice"

        @hookimpl
        def kolors_components():
            return [Twice]

        @hookimpl
        def kolors_recipes():
            return [Path({str(tmp_path / "shipped")!r})]
        ''',
    )
    assert discover().types("upscaler") == ["twice"]
    assert "from_afar" in discover().recipe_names()
    assert load_recipe("from_afar").type == "text_to_image"


def test_the_contracts_find_a_stranger_without_a_line_added(install) -> None:
    install("zeros", ENCODER.format(type="stranger_zeros"))
    file = Path(__file__).resolve().parents[1] / "contracts" / "test_every_component.py"
    spec = importlib.util.spec_from_file_location("contracts_with_a_stranger", file)
    assert spec is not None and spec.loader is not None
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    found = suite.Test_text_encoder_stranger_zeros
    assert issubclass(found, TextEncoderContract)
    assert found().config.width == 8
