"""A device without memory for all examples at once: the same gradient in several passes."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fednano.errors import DeviceMemoryFull
from fednano.fisher import FisherMean
from fednano.model.adapter import MODALITIES, NanoAdapters
from fednano.model.batch import EncodedExample, PackedBatch
from fednano.model.edge import NanoEdge, OutputKind
from fednano.model.parts import load_edge, resolve_model
from fednano.v1.run_pb2 import TrainConfig
from services.client.fisher_pass import estimate_fisher
from services.client.fisher_path import FisherPath
from services.client.fitting import FittingSize
from services.client.trainer import LocalTraining, example_order

CONFIG = TrainConfig(batch_size=5, learning_rate=1e-2, local_epochs=2)


class Prefix:
    """A language model: each output has heard all before it in its own sequence. Its backward pass can be cramped."""

    def __init__(self, most_backward: int = 1000) -> None:
        self.most_backward = most_backward

    def forward(
        self, inputs_embeds_SD: Tensor, lengths: Sequence[int], positions: Sequence[int], kind: OutputKind
    ) -> Tensor:
        assert kind == "hidden_states"
        if inputs_embeds_SD.requires_grad and len(lengths) > self.most_backward:
            inputs_embeds_SD.register_hook(_out_of_memory)  # type: ignore[no-untyped-call]
        sums = [part_TD.cumsum(0) for part_TD in torch.split(inputs_embeds_SD, list(lengths))]
        return torch.cat(sums)[list(positions)] / 20


def _out_of_memory(_: Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


class Cramped(NanoEdge):
    """Has memory for the adapters' pass over so many examples."""

    most = 1000

    def forward(self, batch: PackedBatch) -> Tensor:
        if batch.example_count > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(batch)


def edge_for(most: int) -> Cramped:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    adapters = NanoAdapters(MODALITIES, hidden_size=128, rank=2, alpha=4)
    edge = Cramped(load_edge(resolve_model("nano") / "edge"), adapters)
    edge.most = most
    return edge


def examples() -> list[EncodedExample]:
    random = torch.Generator().manual_seed(0)
    return [
        EncodedExample(
            prompt_ids=(1, *[4] * 16, 9 + index),
            answer_ids=(7 + index, 2),
            image_embeds_PD=torch.randn(16, 128, generator=random),
        )
        for index in range(9)
    ]


def trained(most: int, *, most_backward: int = 1000, drawn: bool = False) -> tuple[dict[str, Tensor], int | None]:
    """Adapters, Fisher information along the way and loss after four steps, and the size that fits."""
    path = FisherPath((lambda step: torch.Generator().manual_seed(step)) if drawn else None)
    fitting, edge = FittingSize("a step"), edge_for(most)
    training = LocalTraining(edge, Prefix(most_backward), CONFIG, proximal_mu=0.1, fisher=path, fitting=fitting)
    training.run(examples(), order=example_order(0, 1, "a"), after_step=lambda: None)
    assert (training.position.step_count, training.position.example_count) == (4, 18)
    assert path.mean.example_count == 18
    found = {name: parameter.detach() for name, parameter in edge.adapters.named_parameters()}
    found |= {f"fisher.{name}": tensor for name, tensor in path.mean.mean().items()}
    return found | {"loss": torch.tensor(training.mean_loss)}, fitting.most


@pytest.mark.parametrize(("most", "fits"), [(3, 3), (2, 2), (1, 1)])
def test_a_step_that_does_not_fit_is_done_in_parts_with_the_same_gradient_in_sum(
    most: int, fits: int, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, all_at_once = trained(1000)
    assert all_at_once is None
    found, size = trained(most)
    assert size == fits
    # Sums are made in another order: the last bits may differ.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert "out_of_memory" in capsys.readouterr().out


def test_a_backward_pass_that_breaks_off_leaves_nothing_behind() -> None:
    torch.testing.assert_close(trained(1000, most_backward=2)[0], trained(1000)[0], rtol=1e-4, atol=1e-7)


def test_labels_are_drawn_anew_for_a_step_that_is_begun_anew() -> None:
    assert trained(2, drawn=True)[0].keys() == trained(1000)[0].keys()
    first, second = (trained(2, drawn=True)[0] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_size_that_fits_is_kept_for_later_steps(capsys: pytest.CaptureFixture[str]) -> None:
    trained(2)
    assert capsys.readouterr().out.count("out_of_memory") == 2, "5 to 3, 3 to 2, and never again"


def test_fisher_information_of_a_group_that_does_not_fit_is_that_of_the_whole() -> None:
    def estimate(most: int) -> FisherMean:
        return estimate_fisher(edge_for(most), Prefix(), examples(), max_pass_tokens=1000, after_batch=lambda: None)

    found, expected = estimate(2), estimate(1000)
    assert found.example_count == expected.example_count == 9
    torch.testing.assert_close(found.mean(), expected.mean(), rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(found.tensors(), expected.tensors(), rtol=1e-4, atol=1e-12)


def test_a_single_example_that_does_not_fit_is_told_with_what_to_do() -> None:
    with pytest.raises(DeviceMemoryFull, match="--device cpu"):
        trained(0)


def test_what_holds_memory_elsewhere_is_let_go_before_the_next_try() -> None:
    seen: list[str] = []
    fitting = FittingSize("a step", before_retry=lambda: seen.append("let go"))

    def attempt(size: int) -> int:
        seen.append(str(size))
        if size > 2:
            raise torch.OutOfMemoryError
        return size

    assert fitting.run(9, attempt) == 2
    assert seen == ["9", "let go", "5", "let go", "3", "let go", "2"]


def test_another_failure_is_no_matter_of_memory() -> None:
    def attempt(_: int) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        FittingSize("a step").run(4, attempt)
