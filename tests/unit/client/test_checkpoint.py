"""A training that is broken off and gone on with, in a process of its own or not, gives the same bits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fednano.model.adapter import MODALITIES, NanoAdapters
from fednano.model.batch import EncodedExample
from fednano.model.edge import NanoEdge
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.parts import EdgeParts, load_edge, resolve_model
from fednano.prompt import Prompt
from fednano.split.traffic import Traffic
from fednano.v1.run_pb2 import TrainConfig
from fednano.wire.artifacts import file_sha256
from services.client.checkpoint import FILE, Checkpoint, TrainingKey, load_checkpoint, save_checkpoint
from services.client.finished_update import FinishedUpdate, load_finished, save_finished
from services.client.fisher_path import FisherPath
from services.client.trainer import LocalTraining, Position, example_order
from services.client.training_folder import TrainingFolder

CONFIG = TrainConfig(local_epochs=2, batch_size=3, learning_rate=1e-2)
# Eight examples in batches of three, twice.
STEPS = 6
KEY = TrainingKey(
    round="runs/demo/rounds/1",
    client="client-1",
    base_adapter_sha256="a" * 64,
    config_sha256="b" * 64,
    examples_sha256="c" * 64,
)


class Killed(Exception):
    """Where the process ends."""


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(resolve_model("nano") / "server")


@pytest.fixture(scope="module")
def parts() -> EdgeParts:
    return load_edge(resolve_model("nano") / "edge")


def edge_of(parts: EdgeParts, seed: int = 7) -> NanoEdge:
    torch.manual_seed(seed)
    return NanoEdge(parts, NanoAdapters(MODALITIES, hidden_size=128, rank=4, alpha=8))


def examples_of(parts: EdgeParts) -> list[EncodedExample]:
    processor = parts.processor
    image_tokens = processor.prompt_ids(Prompt(question="")).count(processor.image_token_id)
    random = torch.Generator().manual_seed(3)
    return [
        EncodedExample(
            prompt_ids=tuple(processor.prompt_ids(Prompt(question="how many circles are there ?" + " red" * index))),
            answer_ids=tuple(processor.answer_ids(str(index))),
            image_embeds_PD=torch.randn(image_tokens, 128, generator=random),
        )
        for index in range(8)
    ]


def run(training: LocalTraining, parts: EdgeParts, after_step: Callable[[], None] = lambda: None) -> None:
    training.run(examples_of(parts), order=example_order(0, 1, "client-1"), after_step=after_step)


@pytest.fixture(scope="module")
def undisturbed(language: LanguageModel, parts: EdgeParts) -> LocalTraining:
    training = LocalTraining(edge_of(parts), language, CONFIG)
    run(training, parts)
    return training


def place_in(folder: Path, every_steps: int = 1, key: TrainingKey = KEY) -> TrainingFolder:
    return TrainingFolder(path=folder, key=key, every_steps=every_steps)


@pytest.mark.parametrize("killed_after", [1, 3, 4, STEPS])
def test_a_training_that_was_killed_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, language: LanguageModel, parts: EdgeParts, undisturbed: LocalTraining, killed_after: int
) -> None:
    place, first = place_in(tmp_path), LocalTraining(edge_of(parts), language, CONFIG)

    def kill() -> None:
        place.save_if_due(first, Traffic(activations_bytes=5, gradients_bytes=6), 1.5)
        if first.position.step_count == killed_after:
            raise Killed

    with pytest.raises(Killed):
        run(first, parts, kill)
    # Everything of the new process is another's, but for what lies in the folder.
    second, traffic = LocalTraining(edge_of(parts, seed=99), language, CONFIG), Traffic()
    assert place_in(tmp_path).restore(second, traffic) == 1.5
    assert second.position.step_count == killed_after
    assert (traffic.activations_bytes, traffic.gradients_bytes) == (5, 6)
    steps = []
    run(second, parts, lambda: steps.append(1))
    assert len(steps) == STEPS - killed_after
    assert second.position == undisturbed.position
    assert_same(second.tensors(), undisturbed.tensors())


def test_without_the_optimizers_state_the_bits_would_differ(
    language: LanguageModel, parts: EdgeParts, undisturbed: LocalTraining
) -> None:
    edge = edge_of(parts)
    first = LocalTraining(edge, language, CONFIG)

    def kill() -> None:
        if first.position.step_count == 3:
            raise Killed

    with pytest.raises(Killed):
        run(first, parts, kill)
    second = LocalTraining(edge, language, CONFIG)
    second.position = first.position
    run(second, parts)
    with pytest.raises(AssertionError):
        assert_same(second.tensors(), undisturbed.tensors())


def test_only_every_so_many_steps_are_saved(tmp_path: Path, language: LanguageModel, parts: EdgeParts) -> None:
    place, saved = place_in(tmp_path, every_steps=4), []
    training = LocalTraining(edge_of(parts), language, CONFIG)

    def note() -> None:
        place.save_if_due(training, Traffic(), 0.0)
        saved.append((tmp_path / FILE).is_file())

    run(training, parts, note)
    assert saved == [False] * 3 + [True] * 3
    assert list(tmp_path.iterdir()) == [tmp_path / FILE]


@pytest.fixture
def saved(tmp_path: Path, undisturbed: LocalTraining) -> Path:
    place_in(tmp_path).save(undisturbed, Traffic(), 1.0)
    return tmp_path


@pytest.mark.parametrize(
    "other",
    [
        {"round": "runs/demo/rounds/2"},
        {"client": "client-2"},
        {"base_adapter_sha256": "0" * 64},
        {"config_sha256": "0" * 64},
        {"examples_sha256": "0" * 64},
    ],
)
def test_a_checkpoint_of_another_training_is_ignored(saved: Path, other: dict[str, str]) -> None:
    assert load_checkpoint(saved, KEY) is not None
    assert load_checkpoint(saved, KEY.model_copy(update=other)) is None


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def one_bit_changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def no_checkpoint_but_a_file(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path)


@pytest.mark.parametrize("damage", [cut_short, emptied, one_bit_changed, no_checkpoint_but_a_file])
def test_a_checkpoint_that_is_damaged_is_ignored(
    saved: Path, language: LanguageModel, parts: EdgeParts, damage: Callable[[Path], None]
) -> None:
    damage(saved / FILE)
    training = LocalTraining(edge_of(parts), language, CONFIG)
    before = training.tensors()
    assert place_in(saved).restore(training, Traffic()) == 0.0
    assert training.position == Position()
    assert_same(training.tensors(), before)


def test_a_checkpoint_of_adapters_of_another_shape_is_ignored(
    saved: Path, language: LanguageModel, parts: EdgeParts
) -> None:
    wider = NanoEdge(parts, NanoAdapters(MODALITIES, hidden_size=128, rank=8, alpha=8))
    training = LocalTraining(wider, language, CONFIG)
    assert place_in(saved).restore(training, Traffic()) == 0.0
    assert training.position == Position()


def test_a_disk_that_refuses_does_not_end_the_training(tmp_path: Path, undisturbed: LocalTraining) -> None:
    (tmp_path / "file").write_bytes(b"")
    place = place_in(tmp_path / "file")
    place.save(undisturbed, Traffic(), 1.0)
    place.keep(FinishedUpdate(key=KEY, files=(), example_count=1, metrics={}))
    assert place.finished() is None


def test_a_checkpoint_keeps_every_number_exactly(tmp_path: Path) -> None:
    checkpoint = Checkpoint(
        key=KEY,
        position=Position(step_count=3, example_count=24, loss_sum=0.1 + 0.2),
        activations_bytes=2**53 + 1,
        gradients_bytes=7,
        seconds=1 / 3,
    )
    save_checkpoint(tmp_path, checkpoint, {"x": torch.tensor([1.0, float("nan")])})
    found = load_checkpoint(tmp_path, KEY)
    assert found is not None
    assert replace(found[0].position) == checkpoint.position
    assert found[0].model_copy(update={"tensors_sha256": ""}) == checkpoint


def finished_in(folder: Path) -> FinishedUpdate:
    (folder / "adapter.safetensors").write_bytes(b"adapter")
    files = (("adapter.safetensors", file_sha256(folder / "adapter.safetensors")),)
    finished = FinishedUpdate(key=KEY, files=files, example_count=24, metrics={"train/loss": 1 / 3})
    save_finished(folder, finished)
    return finished


def test_a_finished_update_is_found_again_by_the_same_training_alone(tmp_path: Path) -> None:
    finished = finished_in(tmp_path)
    assert load_finished(tmp_path, KEY) == finished
    assert load_finished(tmp_path, KEY.model_copy(update={"round": "runs/demo/rounds/2"})) is None
    assert place_in(tmp_path, every_steps=0).finished() is None


def test_a_finished_update_whose_file_changed_or_went_is_ignored(tmp_path: Path) -> None:
    finished_in(tmp_path)
    (tmp_path / "adapter.safetensors").write_bytes(b"another")
    assert load_finished(tmp_path, KEY) is None
    (tmp_path / "adapter.safetensors").unlink()
    assert load_finished(tmp_path, KEY) is None


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("killed_after", [2, 4])
def test_fisher_information_along_a_training_that_was_killed_has_the_bits_of_one_that_was_not(
    tmp_path: Path, language: LanguageModel, parts: EdgeParts, killed_after: int
) -> None:
    whole, first, second = FisherPath(), FisherPath(), FisherPath()
    run(LocalTraining(edge_of(parts), language, CONFIG, fisher=whole), parts)
    place, training = place_in(tmp_path), LocalTraining(edge_of(parts), language, CONFIG, fisher=first)

    def kill() -> None:
        place.save_if_due(training, Traffic(), 0.0)
        if training.position.step_count == killed_after:
            raise Killed

    with pytest.raises(Killed):
        run(training, parts, kill)
    resumed = LocalTraining(edge_of(parts, seed=99), language, CONFIG, fisher=second)
    place_in(tmp_path).restore(resumed, Traffic())
    assert resumed.position.step_count == killed_after
    run(resumed, parts)
    assert_same(second.mean.mean(), whole.mean.mean())
    assert second.mean.reliability() == whole.mean.reliability()


def test_the_proximal_term_is_about_the_rounds_adapters_also_after_a_kill(
    tmp_path: Path, language: LanguageModel, parts: EdgeParts
) -> None:
    whole = LocalTraining(edge_of(parts), language, CONFIG, proximal_mu=5.0)
    run(whole, parts)
    place, training = place_in(tmp_path), LocalTraining(edge_of(parts), language, CONFIG, proximal_mu=5.0)

    def kill() -> None:
        place.save_if_due(training, Traffic(), 0.0)
        raise Killed

    with pytest.raises(Killed):
        run(training, parts, kill)
    # The process that comes next loads the round's adapters before it goes on.
    resumed = LocalTraining(edge_of(parts), language, CONFIG, proximal_mu=5.0)
    place_in(tmp_path).restore(resumed, Traffic())
    run(resumed, parts)
    assert_same(resumed.tensors(), whole.tensors())
