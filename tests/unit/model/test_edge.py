"""The client's half: packing, where embeddings go, and the loss."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fednano.model.adapter import MODALITIES, NanoAdapters
from fednano.model.batch import EncodedExample, consecutive, pack, pack_prompts
from fednano.model.edge import NanoEdge, OutputKind
from fednano.model.parts import load_edge, resolve_model

IMAGE = 4
EXAMPLES = [
    EncodedExample(prompt_ids=(1, IMAGE, IMAGE, 9), answer_ids=(7, 2), image_embeds_PD=torch.full((2, 128), 0.5)),
    EncodedExample(
        prompt_ids=(1, IMAGE, IMAGE, 8, 9), answer_ids=(6, 5, 2), image_embeds_PD=torch.full((2, 128), -0.5)
    ),
]


class Identity:
    """A language model that returns its inputs at the positions that are asked for."""

    def forward(
        self,
        inputs_embeds_SD: Tensor,
        sequence_lengths: Sequence[int],
        output_positions: Sequence[int],
        kind: OutputKind,
    ) -> Tensor:
        assert kind == "hidden_states"
        assert sum(sequence_lengths) == len(inputs_embeds_SD)
        return inputs_embeds_SD[list(output_positions)]


@pytest.fixture(scope="module")
def edge() -> NanoEdge:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    adapters = NanoAdapters(MODALITIES, hidden_size=128, rank=2, alpha=4)
    for name, parameter in adapters.named_parameters():
        if "up" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return NanoEdge(load_edge(resolve_model("nano") / "edge"), adapters)


def test_a_packed_batch_predicts_each_answer_token_from_the_position_before_it() -> None:
    batch = pack(EXAMPLES, IMAGE)
    assert batch.token_ids_S.tolist() == [1, IMAGE, IMAGE, 9, 7, 1, IMAGE, IMAGE, 8, 9, 6, 5]
    assert batch.sequence_lengths == (5, 7)
    assert batch.output_positions == (3, 4, 9, 10, 11)
    assert batch.answer_ids_N.tolist() == [7, 2, 6, 5, 2]
    assert batch.example_index_N.tolist() == [0, 0, 1, 1, 1]
    assert batch.example_index_S.tolist() == [0] * 5 + [1] * 7


def test_packed_prompts_have_one_output_each_at_their_end() -> None:
    prompts = pack_prompts(EXAMPLES, IMAGE)
    assert prompts.sequence_lengths == (4, 5)
    assert prompts.output_positions == (3, 8)


def test_groups_are_bounded_in_examples_and_in_tokens() -> None:
    six_tokens, eight_tokens = EXAMPLES
    three = [six_tokens, eight_tokens, six_tokens]
    assert list(map(len, consecutive(three, most_examples=2, most_tokens=99))) == [2, 1]
    assert list(map(len, consecutive(three, most_examples=9, most_tokens=14))) == [2, 1]
    assert list(map(len, consecutive(three, most_examples=9, most_tokens=14, extra_tokens=1))) == [1, 1, 1]
    assert list(map(len, consecutive(three, most_examples=9, most_tokens=1))) == [1, 1, 1]


def test_each_modality_goes_through_its_own_adapter_to_its_own_place(edge: NanoEdge) -> None:
    embeds_SD = edge(pack(EXAMPLES, IMAGE))
    second_image_D = edge.adapters(EXAMPLES[1].image_embeds_PD[0], "image")
    torch.testing.assert_close(embeds_SD[6], second_image_D)
    word_D = edge.adapters(edge.token_embedding(torch.tensor(9)), "text")
    torch.testing.assert_close(embeds_SD[9], word_D)
    torch.testing.assert_close(edge.next_embeds(torch.tensor([9]))[0], word_D)


def test_the_loss_of_an_example_is_the_sum_over_its_answer_alone(edge: NanoEdge) -> None:
    batch = pack(EXAMPLES, IMAGE)
    with torch.no_grad():
        nll_B = edge.answer_nll(Identity(), edge(batch), batch)
        alone = pack(EXAMPLES[1:], IMAGE)
        logits_NV = edge.logits(edge(alone)[list(alone.output_positions)])
        expected = F.cross_entropy(logits_NV, torch.tensor([6, 5, 2]), reduction="sum")
    torch.testing.assert_close(nll_B[1], expected)


def test_only_adapters_get_gradients(edge: NanoEdge) -> None:
    batch = pack(EXAMPLES, IMAGE)
    edge.zero_grad()
    edge.answer_nll(Identity(), edge(batch), batch).mean().backward()
    with_gradient = {name for name, parameter in edge.named_parameters() if parameter.grad is not None}
    assert with_gradient == {f"adapters.{name}" for name, _ in edge.adapters.named_parameters()}
