"""What a server finds out at its start about decode passes, and that it decides by it."""

import torch
from joined_steps import nano

from services.server.decode_exactness import ROW_TILES, exact_decode_tile
from services.server.exactness import choose_batching


def test_a_tile_is_found_and_the_decoder_keeps_its_own_until_it_is_chosen() -> None:
    torch.set_num_threads(1)
    model = nano()
    model.decoder.row_tile = 5
    tile = exact_decode_tile(model)
    assert tile in ROW_TILES
    assert model.decoder.row_tile == 5
    assert choose_batching("auto", model) == "exact"
    assert model.decoder.row_tile == tile


def test_where_bits_may_change_no_row_is_padded() -> None:
    model = nano()
    for asked in ("close", "off"):
        assert choose_batching(asked, model) == asked
        assert model.decoder.row_tile == 1
