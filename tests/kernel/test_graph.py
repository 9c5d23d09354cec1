from __future__ import annotations

from typing import Any

import pytest

from kolors_kernel.errors import GraphError
from kolors_kernel.graph import Graph, step


@step(writes="latents")
def encode(images: Images, autoencoder: Autoencoder) -> Latents:  # noqa: F821
    return images + autoencoder


@step(writes="conditioning")
def read(captions: Captions, text_encoder: TextEncoder) -> Conditioning:  # noqa: F821
    return captions + text_encoder


@step(writes=("noisy", "target"))
def diffuse(latents: Latents, schedule: NoiseSchedule) -> tuple[Noisy, Latents]:  # noqa: F821
    return latents * schedule, latents


@step(writes="loss")
def measure(noisy: Noisy, target: Latents, conditioning: Conditioning, backbone: Backbone) -> Loss:  # noqa: F821
    return noisy - target + conditioning * backbone


STEPS = [encode, read, diffuse, measure]
PARTS = ["autoencoder", "text_encoder", "schedule", "backbone"]


def test_everything_the_outputs_need_is_kept_in_order() -> None:
    graph = Graph(STEPS, inputs=["images", "captions"], outputs=["loss"], parts=PARTS)
    assert [s.name for s in graph.steps] == ["encode", "read", "diffuse", "measure"]
    assert graph.needs == ("autoencoder", "backbone", "schedule", "text_encoder")
    values = dict(images=1, captions=2, autoencoder=3, text_encoder=4, schedule=5, backbone=6)
    assert graph.run(**values) == ((4 * 5) - 4 + (2 + 4) * 6,)


def test_given_ports_prune_what_would_have_made_them() -> None:
    graph = Graph(STEPS, inputs=["latents", "conditioning", "images"], outputs=["loss"], parts=PARTS)
    assert [s.name for s in graph.steps] == ["diffuse", "measure"]
    assert graph.needs == ("backbone", "schedule"), "no text encoder is built to train on stored conditioning"
    assert graph.inputs == ("conditioning", "latents"), "what nobody reads is not asked for"


def test_precomputing_is_the_training_graph_asked_for_less() -> None:
    graph = Graph(STEPS, inputs=["images", "captions"], outputs=["latents", "conditioning"], parts=PARTS)
    assert [s.name for s in graph.steps] == ["encode", "read"]
    assert graph.needs == ("autoencoder", "text_encoder")
    assert graph.run(images=1, captions=2, autoencoder=3, text_encoder=4) == (4, 6)


def test_a_step_of_two_results_is_kept_for_either() -> None:
    graph = Graph(STEPS, inputs=["latents"], outputs=["target"], parts=PARTS)
    assert graph.run(latents=2, schedule=3) == (2,)


def test_a_step_is_still_a_function() -> None:
    assert encode(1, autoencoder=2) == 3
    assert dict(diffuse.reads) == {"latents": "Latents", "schedule": "NoiseSchedule"}
    assert dict(diffuse.writes) == {"noisy": "Noisy", "target": "Latents"}


def test_reader_and_writer_must_name_one_type() -> None:
    @step(writes="loss")
    def wrong(latents: Noisy) -> Loss:  # noqa: F821
        return latents

    with pytest.raises(GraphError, match="wrong wants 'latents' as Noisy, but encode has it as Latents"):
        Graph([encode, wrong], inputs=["images"], outputs=["loss"], parts=PARTS)


def test_two_readers_of_an_input_must_name_one_type() -> None:
    @step(writes="other")
    def wrong(images: Latents) -> Other:  # noqa: F821
        return images

    with pytest.raises(GraphError, match="'images' as Latents, but encode has it as Images"):
        Graph([encode, wrong], inputs=["images"], outputs=["latents", "other"], parts=PARTS)


@pytest.mark.parametrize(
    ("steps", "inputs", "outputs", "said"),
    [
        ([measure], ["noisy", "target"], ["loss"], "measure reads 'conditioning', which no earlier step writes"),
        ([diffuse, encode], ["images"], ["noisy"], "diffuse reads 'latents', which no earlier step writes"),
        ([encode], ["images"], ["loss"], "no step writes the output 'loss'"),
        ([], [], ["loss"], "no step writes the output 'loss'"),
        ([encode, encode], ["images"], ["latents"], "encode writes 'latents', which encode already writes"),
        ([diffuse], ["latents", "target"], ["noisy"], "diffuse writes 'target', which is given"),
    ],
)
def test_what_does_not_fit_is_told(steps: Any, inputs: list[str], outputs: list[str], said: str) -> None:
    with pytest.raises(GraphError, match=said):
        Graph(steps, inputs=inputs, outputs=outputs, parts=PARTS)


def test_a_step_that_changes_what_it_reads_is_refused() -> None:
    @step(writes="latents")
    def again(latents: Latents) -> Latents:  # noqa: F821
        return latents

    with pytest.raises(GraphError, match="again writes 'latents'"):
        Graph([again], inputs=["images"], outputs=["latents"], parts=["latents"])


def test_a_step_must_annotate_what_it_reads_and_writes() -> None:
    def unsaid(images) -> Latents:  # type: ignore[no-untyped-def]  # noqa: F821
        return images

    def silent(images: Images):  # type: ignore[no-untyped-def]  # noqa: F821
        return images

    def single(images: Images) -> Latents:  # noqa: F821
        return images

    for function, writes in ((unsaid, "latents"), (silent, "latents"), (single, ("latents", "noisy"))):
        with pytest.raises(GraphError, match=f"step {function.__name__} must annotate"):
            step(writes=writes)(function)


def test_a_missing_port_is_told_with_what_was_given() -> None:
    graph = Graph(STEPS, inputs=["images"], outputs=["latents"], parts=PARTS)
    with pytest.raises(GraphError, match="the graph needs images, autoencoder; given: captions"):
        graph.run(captions=3)


def test_a_graph_describes_itself() -> None:
    text = Graph(STEPS, inputs=["images", "captions"], outputs=["loss"], parts=PARTS).describe()
    assert text.splitlines()[0] == "inputs   captions, images"
    assert "  diffuse  latents, schedule -> noisy: Noisy, target: Latents" in text
    assert text.splitlines()[-2:] == ["outputs  loss", "builds   autoencoder, backbone, schedule, text_encoder"]
