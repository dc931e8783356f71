"""Who holds, sends and computes how much: the paper's accounting (its Table 1), and all that it leaves out."""

from dataclasses import dataclass

from fednano.costs.shapes import ModelShape

FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One client's training. ``text_tokens`` counts question and answer of an example, ``answer_tokens`` the answer's.

    ``wire_bytes`` is the size of an element of activations and gradients. ``fisher_examples``: over how many examples a
    pass of its own estimates Fisher information in each round, 0 where there is none, as with FedNano-EF.
    """

    rank: int
    batch_size: int
    text_tokens: int
    answer_tokens: int
    local_steps: int
    rounds: int
    wire_bytes: int
    fisher_examples: int


@dataclass(frozen=True, kw_only=True)
class PaperAccounting:
    """As the paper counts: the client holds encoder and adapters, and uploads adapters; shares are of the whole model.

    Its 4.30 % comes out where the share counts the encoder alone; with the adapters it is 4.31 %.
    """

    client_parameters: int
    client_share: float
    upload_parameters: int
    upload_share: float


@dataclass(frozen=True, kw_only=True)
class Held:
    """Parameters by part."""

    vision_encoder: int
    connector: int
    token_embedding: int
    adapters: int
    client: int
    server: int
    model: int


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of one client, without framing: what dominates a split system is what moves each step."""

    step_up: int
    step_down: int
    round_steps: int
    round_fisher_pass: int
    round_adapter_down: int
    round_adapter_up: int
    round_fisher_up: int
    run: int


@dataclass(frozen=True, kw_only=True)
class Compute:
    """FLOPs of one client's step: two for each parameter and token, attention's products left out.

    ``client_encoder`` is spent once an example, for its outputs are kept. The frozen layers' backward pass computes no
    gradients of weights, so that it costs as much as the forward pass. Passes are the server's, those of training;
    ``server_fisher_round`` is what the estimate of Fisher information adds to a round.
    """

    client_step: int
    client_encoder: int
    server_step: int
    server_fisher_round: int
    server_passes_per_round: int


def paper_accounting(shape: ModelShape, rank: int) -> PaperAccounting:
    adapters, encoder = shape.adapter_count(rank), shape.vision.parameter_count
    return PaperAccounting(
        client_parameters=encoder + adapters,
        client_share=encoder / shape.parameter_count,
        upload_parameters=adapters,
        upload_share=adapters / shape.parameter_count,
    )


def held(shape: ModelShape, rank: int) -> Held:
    adapters, embedding = shape.adapter_count(rank), shape.language.token_embedding_count
    return Held(
        vision_encoder=shape.vision.parameter_count,
        connector=shape.connector_count,
        token_embedding=embedding,
        adapters=adapters,
        client=shape.vision.parameter_count + shape.connector_count + embedding + adapters,
        server=shape.language.layers_count + embedding,
        model=shape.parameter_count,
    )


def traffic(shape: ModelShape, work: Workload) -> Traffic:
    """Up: the inputs, and the gradient at the answers; down: the outputs at the answers, and the inputs' gradient."""
    one_way = (_tokens(shape, work) + work.answer_tokens) * shape.language.hidden_size * work.wire_bytes
    adapter = shape.adapter_count(work.rank) * FLOAT32_BYTES
    steps = work.local_steps * work.batch_size * 2 * one_way
    fisher_pass = work.fisher_examples * 2 * one_way
    return Traffic(
        step_up=work.batch_size * one_way,
        step_down=work.batch_size * one_way,
        round_steps=steps,
        round_fisher_pass=fisher_pass,
        round_adapter_down=adapter,
        round_adapter_up=adapter,
        round_fisher_up=adapter,
        run=work.rounds * (steps + fisher_pass + 3 * adapter),
    )


def compute(shape: ModelShape, work: Workload) -> Compute:
    tokens = work.batch_size * _tokens(shape, work)
    head = shape.language.token_embedding_count
    server_example = 4 * (_tokens(shape, work) * shape.language.layers_count + work.answer_tokens * head)
    # Each token passes one modality's adapter, half of them all, forward and twice backward.
    adapters = 6 * tokens * shape.adapter_count(work.rank) // 2
    images = work.batch_size * shape.vision.image_token_count
    return Compute(
        client_step=adapters,
        client_encoder=2 * images * (shape.vision.parameter_count + shape.connector_count) // work.batch_size,
        server_step=work.batch_size * server_example,
        server_fisher_round=work.fisher_examples * server_example,
        server_passes_per_round=2 * work.local_steps,
    )


def _tokens(shape: ModelShape, work: Workload) -> int:
    return shape.vision.image_token_count + work.text_tokens
