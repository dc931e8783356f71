"""python -m benchmarks.eavesdropping: what an honest but curious server reads out of what a client sends it.

Two attacks that need nothing but the public model. Words: each input embedding's nearest row of the token embedding,
as it is, or as the adapter makes it, which who watches from the first step can follow.
Labels: the gradient of the outputs is the head's rows weighted by (probability - label), so that the label's row is the
one that points away from it the most. Both are measured on the embedded model, before training and after, as sent and
in int8.

N: answer positions   S: tokens of a packed batch   D: hidden size   V: vocabulary   M: text tokens
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fednano.data.icon_federation import write_icon_federation
from fednano.model.adapter import MODALITIES, TEXT, NanoAdapters
from fednano.model.batch import EncodedExample, PackedBatch, pack
from fednano.model.edge import NanoEdge, positions_of
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.parts import load_edge, resolve_model
from fednano.v1 import tensor_pb2
from fednano.wire.tensors import decode_tensor, encode_tensor
from services.client.examples import load_example_set

BATCH, RANK, LEARNING_RATE, RIDGE = 16, 16, 3e-3, 1e-2
ENCODINGS = {"raw": tensor_pb2.ENCODING_RAW, "int8": tensor_pb2.ENCODING_BLOCKWISE_INT8}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What part of the words, and of the answers' tokens, the attacks read right.

    ``words`` by the nearest row alone, ``words_followed`` by one who has watched the adapter from its first step.
    """

    steps: int
    encoding: str
    words: float
    words_followed: float
    answers: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 60, 240], help="steps of training before")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    readings = measure(sorted(arguments.steps))
    if arguments.json:
        print(json.dumps([asdict(reading) for reading in readings], indent=2))
        return
    for reading in readings:
        words = f"words {reading.words:7.2%}, followed {reading.words_followed:7.2%}"
        print(f"{reading.steps:4} steps  {reading.encoding:4}  {words}  answers {reading.answers:7.2%}")


def measure(step_counts: list[int]) -> list[Reading]:
    """Over 256 examples that the adapters were not trained on, after so many steps on others."""
    edge, language = _edge(), load_language_model(resolve_model("nano") / "server")
    with tempfile.TemporaryDirectory() as folder:
        (client,) = write_icon_federation(
            Path(folder) / "examples", client_count=1, alpha=1.0, seed=0, val_count=16, test_count=256
        )
        train, watched = (load_example_set(client, split, edge.parts).encoded for split in ("train", "test"))
    optimizer = torch.optim.Adam(edge.adapters.parameters(), lr=LEARNING_RATE)
    followers = {name: Follower(edge.token_embedding.weight) for name in ENCODINGS}
    readings, done = [], 0
    for steps in step_counts:
        while done < steps:
            batch = _batch(edge, train, done)
            for name, follower in followers.items():
                with torch.no_grad():
                    follower.follow(_over_the_wire(edge(batch), name)[positions_of(batch, TEXT)])
            _train_step(edge, language, batch, optimizer)
            done += 1
        readings += [_reading(edge, language, watched[:256], steps, name, followers[name]) for name in ENCODINGS]
    return readings


def read_words(rows_VD: Tensor, inputs_embeds_MD: Tensor) -> Tensor:
    """The ids [M] of the rows nearest to the embeddings."""
    return torch.cdist(inputs_embeds_MD, rows_VD).argmin(dim=1)


class Follower:
    """Reads words behind an adapter that changes a little with each step: what it has read tells how the adapter is.

    It starts with the public token embedding, for a new adapter changes nothing.
    """

    def __init__(self, token_embedding_VD: Tensor) -> None:
        self._embedding_VD = token_embedding_VD
        self._map_DD = torch.eye(token_embedding_VD.shape[1])

    def read(self, inputs_embeds_MD: Tensor) -> Tensor:
        return read_words(self._embedding_VD @ self._map_DD, inputs_embeds_MD)

    def follow(self, inputs_embeds_MD: Tensor) -> None:
        """Fits the linear map to what was just read, staying near to what it was where nothing was."""
        rows_MD = self._embedding_VD[self.read(inputs_embeds_MD)]
        left_over_MD = inputs_embeds_MD - rows_MD @ self._map_DD
        ridge_DD = RIDGE * torch.eye(len(self._map_DD))
        self._map_DD = self._map_DD + torch.linalg.solve(rows_MD.T @ rows_MD + ridge_DD, rows_MD.T @ left_over_MD)


def read_answers(head_VD: Tensor, grad_outputs_ND: Tensor) -> Tensor:
    """The ids [N] of the rows that point away from the gradients the most."""
    return (grad_outputs_ND @ F.normalize(head_VD, dim=1).T).argmin(dim=1)


def _reading(
    edge: NanoEdge,
    language: LanguageModel,
    examples: tuple[EncodedExample, ...],
    steps: int,
    encoding: str,
    follower: Follower,
) -> Reading:
    sent, token_ids, answers = [], [], []
    for number in range(len(examples) // BATCH):
        batch = _batch(edge, examples, number)
        sent_SD, grad_ND = what_is_sent(edge, language, batch)
        text_M = positions_of(batch, TEXT)
        sent.append(_over_the_wire(sent_SD, encoding)[text_M])
        token_ids.append(batch.token_ids_S[text_M])
        assert edge.head is not None
        answers.append(
            (read_answers(edge.head.weight, _over_the_wire(grad_ND, encoding)) == batch.answer_ids_N).float()
        )
    nearest = read_words(edge.token_embedding.weight, torch.cat(sent)) == torch.cat(token_ids)
    followed = follower.read(torch.cat(sent)) == torch.cat(token_ids)
    return Reading(
        steps=steps,
        encoding=encoding,
        words=float(nearest.float().mean()),
        words_followed=float(followed.float().mean()),
        answers=float(torch.cat(answers).mean()),
    )


def what_is_sent(edge: NanoEdge, language: LanguageModel, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """All that a step sends up: inputs_embeds_SD, and the gradient [N, D] of the loss at the outputs."""
    with torch.no_grad():
        inputs_embeds_SD = edge(batch)
        outputs_ND = language.forward(inputs_embeds_SD, batch.sequence_lengths, batch.output_positions, "hidden_states")
    outputs_ND.requires_grad_(True)
    loss = F.cross_entropy(edge.logits(outputs_ND), batch.answer_ids_N)
    (grad_outputs_ND,) = torch.autograd.grad(loss, outputs_ND)
    return inputs_embeds_SD, grad_outputs_ND


def _over_the_wire(tensor: Tensor, encoding: str) -> Tensor:
    spec, payload = encode_tensor(tensor.contiguous(), ENCODINGS[encoding])
    return decode_tensor(spec, bytearray(payload))


def _train_step(edge: NanoEdge, language: LanguageModel, batch: PackedBatch, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(edge.answer_nll(language, edge(batch), batch).mean())
    optimizer.step()


def _batch(edge: NanoEdge, examples: tuple[EncodedExample, ...], number: int) -> PackedBatch:
    start = number * BATCH % (len(examples) - BATCH + 1)
    return pack(examples[start : start + BATCH], edge.parts.processor.image_token_id)


def _edge() -> NanoEdge:
    torch.manual_seed(0)
    parts = load_edge(resolve_model("nano") / "edge")
    return NanoEdge(parts, NanoAdapters(MODALITIES, hidden_size=parts.manifest.hidden_size, rank=RANK, alpha=2 * RANK))


if __name__ == "__main__":
    main()
