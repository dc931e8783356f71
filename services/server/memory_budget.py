"""How much memory there is to give, where the operator did not say."""

import torch

from fednano.host_memory import free_memory_bytes
from fednano.model.language import LanguageModel

# Of what is free once the model is loaded: the rest is for the pass that runs, for frames under way, for others. The C
# library's allocator was seen to hold 1.7 times what the graphs on a CPU take, because passes leave gaps among them.
HOST_GRAPHS_SHARE = 0.4
DEVICE_GRAPHS_SHARE = 0.5
INPUTS_SHARE = 0.125
PACKED_SHARE = 0.5
# Where a system tells nothing of its memory.
_CAUTIOUS_BYTES = 1 << 30
# Tensors as wide as the hidden size that a usual layer keeps of a row, the wider ones counted by their width.
_KEPT_WIDTHS_PER_LAYER = 32


def graph_budget_bytes(model: LanguageModel) -> int:
    """Graphs live where the model computes."""
    if model.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(model.device)
        return int(DEVICE_GRAPHS_SHARE * free_bytes)
    return int(HOST_GRAPHS_SHARE * free_host_bytes())


def input_budget_bytes() -> int:
    """Inputs live in the host's memory, wherever the model computes."""
    return int(INPUTS_SHARE * free_host_bytes())


def may_pack(model: LanguageModel) -> bool:
    """Whether there are weights that can be laid out anew for decoding, and room for it."""
    return 0 < model.packed_bytes(decoding_only=True) <= PACKED_SHARE * free_host_bytes()


def guessed_row_bytes(model: LanguageModel) -> int:
    """What the graph of one token takes, until a pass was measured: rather too much."""
    return _KEPT_WIDTHS_PER_LAYER * model.layer_count * model.hidden_size * model.dtype.itemsize


def guessed_layer_row_bytes(model: LanguageModel) -> int:
    """The same where only each layer's inputs are kept, and the whole graph of what comes after the layers."""
    return (model.layer_count * model.hidden_size + 4 * max(model.hidden_size, model.vocab_size)) * model.dtype.itemsize


def free_host_bytes() -> int:
    """The least of what the machine and this process's container have left, or a careful guess."""
    free_bytes = free_memory_bytes()
    return _CAUTIOUS_BYTES if free_bytes is None else free_bytes
