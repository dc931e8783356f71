"""How passages are laid out in a joined pass."""

import torch

from fednano.model.packing import Passage, join, padded


def passage(*lengths: int, positions: tuple[int, ...] = (0,), value: float = 1.0) -> Passage:
    return Passage(
        inputs_embeds_SD=torch.full((sum(lengths), 2), value), sequence_lengths=lengths, output_positions=positions
    )


def test_each_passage_fills_whole_tiles_and_its_last_sequence_has_the_padding() -> None:
    joined = join([passage(3, 2, positions=(1, 4)), passage(4, value=2.0), passage(5, value=3.0)], "hidden_states", 4)
    assert joined.inputs_embeds_PD[:, 0].tolist() == [1.0] * 5 + [0.0] * 3 + [2.0] * 4 + [3.0] * 5 + [0.0] * 3
    assert joined.sequence_lengths == (3, 5, 4, 8)
    assert joined.position_ids_P.tolist() == [0, 1, 2, 0, 1, 0, 0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 0, 0]
    assert joined.input_ranges == (slice(0, 5), slice(8, 12), slice(12, 17))
    assert joined.output_positions == (1, 4, 8, 12)
    assert joined.output_ranges == (slice(0, 2), slice(2, 3), slice(3, 4))


def test_rows_of_the_head_fill_whole_tiles_too() -> None:
    joined = join([passage(8, positions=(1, 4, 6)), passage(8, positions=(0,))], "logits", 4)
    assert joined.output_positions == (1, 4, 6, 6, 8, 8, 8, 8)
    assert joined.output_ranges == (slice(0, 3), slice(4, 5))


def test_what_fills_its_tiles_already_is_not_copied() -> None:
    alone = passage(3, 5)
    assert join([alone], "hidden_states", 8).inputs_embeds_PD is alone.inputs_embeds_SD


def test_padding_reaches_the_next_multiple_and_no_further() -> None:
    assert [padded(count, 8) for count in (1, 7, 8, 9, 16)] == [8, 8, 8, 16, 16]
