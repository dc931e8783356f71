"""A joined pass gives each member the bits that it gets by itself, whoever else is in it, and however it is done."""

import pytest
import torch
from joined_steps import Step, arrived, decoded, nano, ragged_steps

from fednano.errors import FieldInvalid
from fednano.model.language import LanguageModel
from fednano.model.packing import OutputKind
from services.server.graph_memory import KeptStep
from services.server.passes import BackwardWork, ForwardAnswer, ForwardOutcome, run_again, run_backward, run_forward


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return nano()


def joined(model: LanguageModel, steps: list[Step], kind: OutputKind, *, keeps_graph: bool = True) -> ForwardOutcome:
    return run_forward(model, [step.forward_work for step in steps], kind, keeps_graph=keeps_graph)


def kept(outcome: ForwardOutcome) -> list[KeptStep]:
    assert all(isinstance(answer, ForwardAnswer) for answer in outcome.answers)
    return [answer.step for answer in outcome.answers if isinstance(answer, ForwardAnswer)]


def works(outcome: ForwardOutcome, steps: list[Step], places: list[int]) -> list[BackwardWork]:
    members = kept(outcome)
    return [BackwardWork(step=members[place], gradient=arrived(steps[place].grad_output_N)) for place in places]


@pytest.mark.parametrize("kind", ["hidden_states", "logits"])
@pytest.mark.parametrize("keeps_graph", [True, False])
def test_outputs_alone_and_joined_have_the_same_bits(model: LanguageModel, kind: OutputKind, keeps_graph: bool) -> None:
    steps = ragged_steps(model, kind)
    outcome = joined(model, steps, kind, keeps_graph=keeps_graph)
    for step, answer in zip(steps, outcome.answers, strict=True):
        assert isinstance(answer, ForwardAnswer)
        assert torch.equal(decoded(answer.output), step.output_N)
    assert (outcome.graph is not None) == keeps_graph


@pytest.mark.parametrize("kind", ["hidden_states", "logits"])
@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4, 5], [4, 1], [3]])
def test_gradients_alone_joined_and_computed_again_have_the_same_bits(
    model: LanguageModel, kind: OutputKind, places: list[int]
) -> None:
    steps = ragged_steps(model, kind)
    outcome = joined(model, steps, kind)
    assert outcome.graph is not None
    present = works(outcome, steps, places)
    from_graph = run_backward(outcome.graph, places, present)
    again, size_bytes = run_again(model, present)
    assert size_bytes > 0
    for place, retained, recomputed in zip(places, from_graph, again, strict=True):
        assert isinstance(retained, tuple)
        assert isinstance(recomputed, tuple)
        assert torch.equal(decoded(retained), steps[place].grad_inputs_SD)
        assert torch.equal(decoded(recomputed), steps[place].grad_inputs_SD)


@pytest.mark.parametrize("kind", ["hidden_states", "logits"])
def test_gradients_with_the_layers_inputs_alone_have_the_bits_of_the_retained_graph(
    model: LanguageModel, kind: OutputKind
) -> None:
    steps = ragged_steps(model, kind)
    works_of_all = [step.forward_work for step in steps]
    outcome = run_forward(model, works_of_all, kind, keeps_graph=True, checkpointed=True)
    assert outcome.graph is not None
    places = list(range(len(steps)))
    present = works(outcome, steps, places)
    kept_layers = run_backward(outcome.graph, places, present)
    again, _ = run_again(model, present, checkpointed=True)
    for step, gradient, recomputed in zip(steps, kept_layers, again, strict=True):
        assert isinstance(gradient, tuple)
        assert isinstance(recomputed, tuple)
        assert torch.equal(decoded(gradient), step.grad_inputs_SD)
        assert torch.equal(decoded(recomputed), step.grad_inputs_SD)


def test_the_layers_inputs_alone_take_a_small_part_of_the_whole_graph(model: LanguageModel) -> None:
    works_of_all = [step.forward_work for step in ragged_steps(model)]
    whole, layers = (
        run_forward(model, works_of_all, "hidden_states", keeps_graph=True, checkpointed=checkpointed).graph
        for checkpointed in (False, True)
    )
    assert whole is not None
    assert layers is not None
    # A layer's inputs are one row of 128 floats, and its whole graph about twenty times that.
    rows, width = whole.inputs_embeds_PD.shape
    assert layers.size_bytes >= model.layer_count * rows * width * 4
    assert layers.size_bytes < whole.size_bytes / 4


def test_a_member_whose_inputs_are_not_finite_is_refused_alone(model: LanguageModel) -> None:
    steps = ragged_steps(model)
    steps[1].inputs_embeds_SD[0, 0] = torch.nan
    outcome = joined(model, steps, "hidden_states")
    for place, (step, answer) in enumerate(zip(steps, outcome.answers, strict=True)):
        if place == 1:
            assert isinstance(answer, FieldInvalid)
        else:
            assert isinstance(answer, ForwardAnswer)
            assert torch.equal(decoded(answer.output), step.output_N)


def test_a_member_whose_gradient_is_not_finite_is_refused_alone(model: LanguageModel) -> None:
    steps = ragged_steps(model)
    outcome = joined(model, steps, "hidden_states")
    steps[2].grad_output_N[0, 0] = torch.inf
    assert outcome.graph is not None
    places = list(range(len(steps)))
    answers = run_backward(outcome.graph, places, works(outcome, steps, places))
    assert isinstance(answers[2], FieldInvalid)
    for place in (0, 1, 3, 4, 5):
        answer = answers[place]
        assert isinstance(answer, tuple)
        assert torch.equal(decoded(answer), steps[place].grad_inputs_SD)


def test_gradients_come_in_the_type_of_the_inputs(model: LanguageModel) -> None:
    (step,) = ragged_steps(model, lengths=[(6, 5)])
    low = Step(**{**vars(step), "inputs_embeds_SD": step.inputs_embeds_SD.bfloat16()})
    outcome = joined(model, [low], "hidden_states")
    assert outcome.graph is not None
    (answer,) = run_backward(outcome.graph, [0], works(outcome, [low], [0]))
    assert isinstance(answer, tuple)
    assert decoded(answer).dtype == torch.bfloat16


def test_the_bytes_of_a_graph_grow_with_its_rows_and_count_no_weight(model: LanguageModel) -> None:
    small, large = (
        joined(model, ragged_steps(model, lengths=lengths), "hidden_states").graph
        for lengths in ([(16,)], [(16,), (16,), (16,), (16,)])
    )
    assert small is not None
    assert large is not None
    # Row for row the same, but for a few bytes of positions and scales.
    assert large.size_bytes == pytest.approx(4 * small.size_bytes, rel=0.05)
    assert joined(model, ragged_steps(model), "logits", keeps_graph=False).graph is None
