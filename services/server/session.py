"""One StreamSteps stream: frames in their order become forward and backward passes.

Any frame that does not fit ends the session with the error that says why; no other session notices.
"""

from structlog.contextvars import bind_contextvars

from fednano.errors import FieldInvalid, StepUnknown, StreamMalformed, TooManyPendingSteps
from fednano.model.language import LanguageModel
from fednano.telemetry import get_logger
from fednano.tracing import span_for_peer
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from services.server import checks
from services.server.frames import Frames
from services.server.loss_pass import LossWork
from services.server.loss_steps import check_allowed, check_loss, loss_bytes
from services.server.passes import Arrived, BackwardWork, ForwardWork
from services.server.requests import BackwardRequest, ForwardRequest, LossRequest
from services.server.seat import Seat
from services.server.settings import ServerSettings

log = get_logger("server.session")

StepFrames = Frames[pb.StreamStepsRequest, pb.StreamStepsResponse]


class StepSession:
    """The steps of one client live at its seat, and nowhere else, until the stream ends."""

    def __init__(self, frames: StepFrames, model: LanguageModel, seat: Seat, settings: ServerSettings) -> None:
        self._frames = frames
        self._model = model
        self._seat = seat
        self._settings = settings
        self._encoding: tpb.Encoding.ValueType = tpb.ENCODING_RAW
        self._takes_labels = False
        self._last_step_id: int | None = None

    async def run(self) -> None:
        """Returns when the client has closed its side."""
        opening = await self._frames.opening()
        if opening is None:
            return
        opened = opening.open_session if opening.HasField("open_session") else None
        session = checks.check_open(opened, self._model.manifest.digest, self._settings.wire_encodings)
        check_allowed(session.loss_on_server, self._settings)
        self._takes_labels = session.loss_on_server
        self._encoding = session.encoding
        self._frames.agree(session.encoding)
        bind_contextvars(run=session.run)
        log.info("session_opened")
        answer = pb.SessionOpened(max_pending_steps=self._settings.max_pending_steps, encoding=session.encoding)
        await self._frames.send(pb.StreamStepsResponse(session_opened=answer))
        while (request := await self._frames.next_header(begun=self._seat.pending_count > 0)) is not None:
            await self._handle(request)
        log.info("session_closed", pending=self._seat.pending_count)

    async def _handle(self, request: pb.StreamStepsRequest) -> None:
        match request.WhichOneof("frame"):
            case "forward":
                await self._forward(request.forward)
            case "backward":
                await self._backward(request.backward)
            case "loss":
                await self._loss(request.loss)
            case "discard":
                self._seat.discard(request.discard.step_id)
            case other:
                raise StreamMalformed(f"{other or 'an empty frame'} came where a step's header was due")

    async def _forward(self, step: pb.ForwardStep) -> None:
        kind = checks.check_forward(step, self._model, self._settings.max_pass_tokens)
        self._check_place(step.step_id)
        self._check_pending(step)
        self._seat.admit(step.step_id, checks.step_bytes(step, self._model))
        payload = await self._frames.payload(step.inputs_embeds)
        request = ForwardRequest(
            client=self._seat.client,
            token_count=step.inputs_embeds.shape[0],
            work=self._forward_work(step, payload),
            output_kind=kind,
            keeps_graph=step.requires_grad,
        )
        with span_for_peer("forward pass", step.traceparent, step_id=step.step_id, tokens=request.token_count):
            spec, encoded = await self._seat.forward(step.step_id, request)
        result = pb.ForwardResult(step_id=step.step_id, output=spec)
        await self._answer(pb.StreamStepsResponse(forward_result=result), encoded)

    async def _loss(self, step: pb.LossStep) -> None:
        # Also without leave asked for, a client's labels are not taken: it may have meant to keep them.
        if not self._takes_labels:
            raise StreamMalformed("a step with labels came in a session that was opened without loss_on_server")
        check_loss(step, self._model, self._settings.max_pass_tokens)
        self._check_place(step.step_id)
        with self._seat.room(loss_bytes(step, self._model)):
            payload = await self._frames.payload(step.inputs_embeds)
            forward = self._forward_work(step, payload)
            work = LossWork(forward=forward, answer_ids=tuple(step.answer_ids), weights=tuple(step.weights))
            tokens = step.inputs_embeds.shape[0]
            request = LossRequest(client=self._seat.client, token_count=tokens, work=work)
            with span_for_peer("loss pass", step.traceparent, step_id=step.step_id, tokens=tokens):
                answer = await self._seat.loss(request)
        spec, encoded = answer.grad_inputs_embeds
        result = pb.LossResult(step_id=step.step_id, nll=answer.nll, grad_inputs_embeds=spec)
        await self._answer(pb.StreamStepsResponse(loss_result=result), encoded)

    def _forward_work(self, step: pb.ForwardStep | pb.LossStep, payload: bytearray) -> ForwardWork:
        return ForwardWork(
            inputs_embeds=Arrived(spec=step.inputs_embeds, payload=payload, encoding=self._encoding),
            sequence_lengths=tuple(step.sequence_lengths),
            output_positions=tuple(step.output_positions),
        )

    def _check_place(self, step_id: int) -> None:
        if self._last_step_id is not None and step_id <= self._last_step_id:
            raise FieldInvalid(f"step_id must grow; {step_id} came after {self._last_step_id}", field="step_id")
        self._last_step_id = step_id

    def _check_pending(self, step: pb.ForwardStep) -> None:
        bound = self._settings.max_pending_steps
        if step.requires_grad and self._seat.pending_count >= bound:
            message = f"{bound} forward passes await their backward pass: send it, or discard one, before the next"
            raise TooManyPendingSteps(message, max_pending_steps=str(bound))

    async def _backward(self, step: pb.BackwardStep) -> None:
        kept = self._seat.pending(step.step_id)
        if kept is None:
            message = f"no forward pass {step.step_id} awaits its backward pass: run the step again from its start"
            raise StepUnknown(message, step_id=str(step.step_id))
        checks.check_gradient(step.grad_output, kept.output_shape)
        payload = await self._frames.payload(step.grad_output)
        gradient = Arrived(spec=step.grad_output, payload=payload, encoding=self._encoding)
        request = BackwardRequest(
            client=self._seat.client, token_count=kept.token_count, work=BackwardWork(step=kept, gradient=gradient)
        )
        with span_for_peer("backward pass", step.traceparent, step_id=step.step_id, tokens=request.token_count):
            spec, encoded = await self._seat.backward(step.step_id, request)
        result = pb.BackwardResult(step_id=step.step_id, grad_inputs_embeds=spec)
        await self._answer(pb.StreamStepsResponse(backward_result=result), encoded)

    async def _answer(self, header: pb.StreamStepsResponse, payload: memoryview) -> None:
        await self._frames.send(header)
        for chunk in self._frames.chunks(payload):
            await self._frames.send(pb.StreamStepsResponse(chunk=chunk))
