"""Measuring an adapter on the client's own test split: greedy answers, compared as IconQA compares them."""

from collections.abc import Callable, Sequence

from fednano.data.scoring import accuracy
from fednano.model.batch import EncodedExample, consecutive, pack_prompts
from fednano.model.edge import NanoEdge
from fednano.split.remote import RemoteLanguageModel
from services.client.examples import ExampleSet
from services.client.fitting import FittingSize, pieces

EVALUATION_BATCH = 32


def measure_accuracy(
    edge: NanoEdge,
    language: RemoteLanguageModel,
    tests: ExampleSet,
    *,
    example_count: int,
    max_new_tokens: int,
    max_pass_tokens: int,
    after_batch: Callable[[], None],
    fitting: FittingSize | None = None,
) -> float:
    """The share of the first ``example_count`` examples answered exactly."""
    processor = edge.parts.processor
    encoded = tests.encoded[:example_count]
    fitting = fitting or FittingSize("answers")
    predictions: list[str] = []
    for group in consecutive(
        encoded, most_examples=EVALUATION_BATCH, most_tokens=max_pass_tokens, extra_tokens=max_new_tokens
    ):

        def answers(size: int, group: Sequence[EncodedExample] = group) -> list[list[int]]:
            batches = (pack_prompts(piece, processor.image_token_id) for piece in pieces(group, size))
            return [ids for prompts in batches for ids in language.greedy_answers(edge, prompts, max_new_tokens)]

        predictions += map(processor.text, fitting.run(len(group), answers))
        after_batch()
    return accuracy(predictions, tests.examples[:example_count])
