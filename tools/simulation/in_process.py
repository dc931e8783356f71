"""The language model in this very process, with what a client asks of one behind the network."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from fednano.model.batch import PackedBatch
from fednano.model.edge import NanoEdge, OutputKind
from fednano.model.language import LanguageModel
from fednano.split.decode import greedy_decode
from fednano.split.traffic import Traffic
from fednano.v1.tensor_pb2 import ENCODING_RAW


class InProcessLanguageModel:
    """Stands for ``RemoteLanguageModel``. Nothing travels, so that its traffic stays 0."""

    encoding = ENCODING_RAW

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.traffic = Traffic()

    def forward(
        self,
        inputs_embeds_SD: Tensor,
        sequence_lengths: Sequence[int],
        output_positions: Sequence[int],
        output_kind: OutputKind,
    ) -> Tensor:
        return self._model.forward(inputs_embeds_SD, sequence_lengths, output_positions, output_kind)

    def greedy_answers(self, edge: NanoEdge, prompts: PackedBatch, max_new_tokens: int) -> list[list[int]]:
        return greedy_decode(
            edge,
            partial(self._model.decode, self._model.start_decoding()),
            prompts,
            eos_token_id=edge.parts.processor.eos_token_id,
            max_new_tokens=max_new_tokens,
        )

    def close(self) -> None:
        """There is no session."""
