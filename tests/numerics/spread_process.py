"""One of several processes that hold one model together; started by torchrun with the model's folder.

The lead compares what they compute with the whole model, which it has too, and prints the largest differences.
D: hidden size   P: rows of a joined pass   M: output positions, padding included
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from fednano.model.language import LanguageModel, load_language_model
from fednano.model.packing import OutputKind, Passage, join
from fednano.model.ranks import Ranks
from fednano.model.spread import LeadModel, load_follower, load_lead

LENGTHS = (9, 3, 14)


def share(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def rows(model: LanguageModel, seed: int, kind: OutputKind) -> tuple[Tensor, Tensor]:
    """The leaf [P, D] of one pass and its outputs [M, D] or [M, V]."""
    generator = torch.Generator().manual_seed(seed)
    passage = Passage(
        inputs_embeds_SD=torch.randn(sum(LENGTHS), model.hidden_size, generator=generator),
        sequence_lengths=LENGTHS,
        output_positions=tuple(range(0, sum(LENGTHS), 2)),
    )
    joined = join([passage], kind, model.row_tile)
    leaf_PD = joined.inputs_embeds_PD.detach().requires_grad_()
    return leaf_PD, model.forward_rows(joined, leaf_PD, kind)


def like(output: Tensor) -> Tensor:
    """A gradient for it: any that a norm at the model's end does not make vanish."""
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(9))


def both_passes(model: LanguageModel, kind: OutputKind, *, checkpointed: bool) -> list[Tensor]:
    """Two passes whose graphs are alive at once, the younger one's backward pass first; a third is forgotten."""
    with model.layers.checkpointing(checkpointed):
        leaves, outputs = zip(*[rows(model, seed, kind) for seed in (1, 2, 3)], strict=True)
    grads = [torch.autograd.grad(outputs[i], leaves[i], like(outputs[i]))[0] for i in (1, 0)]
    return [outputs[0].detach(), outputs[1].detach(), *grads]


def decoded(model: LanguageModel) -> list[Tensor]:
    """Two streams that go on by turns, one sequence of which ends."""
    states = [model.start_decoding(), model.start_decoding()]
    generator = torch.Generator().manual_seed(4)
    found = []
    for lengths in ([4, 2], [1, 1], [0, 1]):
        for state in states:
            inputs_SD = torch.randn(sum(lengths), model.hidden_size, generator=generator)
            found.append(model.decode(state, inputs_SD, lengths, "logits"))
    return found


def differences(lead: LeadModel, whole: LanguageModel) -> dict[str, float]:
    kinds: tuple[OutputKind, ...] = ("hidden_states", "logits")
    worst = {}
    for kind in kinds:
        for checkpointed in (False, True):
            pairs = zip(*(both_passes(each, kind, checkpointed=checkpointed) for each in (lead, whole)), strict=True)
            worst[f"{kind}, checkpointed {checkpointed}"] = max(share(found, wanted) for found, wanted in pairs)
        with torch.no_grad():
            worst[f"{kind}, no graph"] = share(rows(lead, 5, kind)[1], rows(whole, 5, kind)[1])
    worst["decoding"] = max(share(*pair) for pair in zip(decoded(lead), decoded(whole), strict=True))
    return worst


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.join()
    if not ranks.is_lead:
        load_follower(folder, torch.float32, ranks).run()
        return
    lead, whole = load_lead(folder, torch.float32, ranks), load_language_model(folder)
    weight = lead._model.base_model.layers[0].mlp.up_proj.weight
    with lead.leading():
        found = {"share": weight.to_local().numel() / weight.numel(), "worst": differences(lead, whole)}
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
