"""LossSteps of a session: their checks, and their way to the model and back."""

import math

from fednano.errors import FieldInvalid, Unsupported
from fednano.model.language import LanguageModel
from fednano.v1 import split_service_pb2 as pb
from services.server import checks
from services.server.settings import ServerSettings


def check_allowed(asked: bool, settings: ServerSettings) -> None:
    """Raises Unsupported where the client would send its labels and the operator did not allow that."""
    if asked and not settings.allow_loss_on_server:
        message = (
            "this server takes no labels: compute the loss on the client (its setting --loss-on-server), "
            "or have the server started with --allow-loss-on-server"
        )
        raise Unsupported(message, field="open_session.loss_on_server", value="true")


def check_loss(step: pb.LossStep, model: LanguageModel, max_pass_tokens: int) -> None:
    """That every field of the header holds; no message quotes a label."""
    as_forward = pb.ForwardStep(
        inputs_embeds=step.inputs_embeds,
        sequence_lengths=step.sequence_lengths,
        output_positions=step.output_positions,
        output_kind=pb.OUTPUT_KIND_LOGITS,
    )
    checks.check_forward(as_forward, model, max_pass_tokens)
    count = len(step.output_positions)
    if len(step.answer_ids) != count or not 0 <= min(step.answer_ids) <= max(step.answer_ids) < model.vocab_size:
        message = f"answer_ids must be {count}, one for each output position, from 0 to {model.vocab_size - 1}"
        raise FieldInvalid(message, field="answer_ids")
    if len(step.weights) != count or not all(map(math.isfinite, step.weights)):
        raise FieldInvalid(f"weights must be {count} finite numbers, one for each output position", field="weights")


def loss_bytes(step: pb.LossStep, model: LanguageModel) -> int:
    """What a checked step takes in until it is done."""
    return int(step.inputs_embeds.shape[0]) * model.hidden_size * checks.WIDEST_ELEMENT_BYTES
