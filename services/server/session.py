"""One StreamSteps stream: frames in their order become forward and backward passes.

Any frame that does not fit ends the session with the error that says why; no other session notices.
"""

from structlog.contextvars import bind_contextvars

from fednano.errors import FieldInvalid, StepUnknown, StreamMalformed, TooManyPendingSteps
from fednano.model.language import LanguageModel, OutputKind
from fednano.telemetry import get_logger
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.tensors import encode_tensor
from services.server import checks
from services.server.frames import Frames, chunks_of
from services.server.model_thread import ModelThread
from services.server.passes import Encoded, PendingStep, finite_tensor, run_backward, run_forward
from services.server.settings import ServerSettings

log = get_logger("server.session")

StepFrames = Frames[pb.StreamStepsRequest, pb.StreamStepsResponse]


class StepSession:
    """The graphs of one client live here, and nowhere else, until the stream ends."""

    def __init__(self, frames: StepFrames, model: LanguageModel, thread: ModelThread, settings: ServerSettings) -> None:
        self._frames = frames
        self._model = model
        self._thread = thread
        self._settings = settings
        self._encoding: tpb.Encoding.ValueType = tpb.ENCODING_RAW
        self._pending: dict[int, PendingStep] = {}
        self._last_step_id: int | None = None

    async def run(self) -> None:
        """Returns when the client has closed its side."""
        opening = await self._frames.opening()
        if opening is None:
            return
        opened = opening.open_session if opening.HasField("open_session") else None
        session = checks.check_open(opened, self._model.manifest.digest)
        self._encoding = session.encoding
        bind_contextvars(run=session.run)
        log.info("session_opened")
        answer = pb.SessionOpened(max_pending_steps=self._settings.max_pending_steps)
        await self._frames.send(pb.StreamStepsResponse(session_opened=answer))
        while (request := await self._frames.next_header()) is not None:
            await self._handle(request)
        log.info("session_closed", pending=len(self._pending))

    async def _handle(self, request: pb.StreamStepsRequest) -> None:
        match request.WhichOneof("frame"):
            case "forward":
                await self._forward(request.forward)
            case "backward":
                await self._backward(request.backward)
            case "discard":
                self._pending.pop(request.discard.step_id, None)
            case other:
                raise StreamMalformed(f"{other or 'an empty frame'} came where a step's header was due")

    async def _forward(self, step: pb.ForwardStep) -> None:
        kind = checks.check_forward(step, self._model, self._settings.max_pass_tokens)
        self._check_place(step)
        payload = await self._frames.payload(step.inputs_embeds)
        pending, (spec, encoded) = await self._thread.run(
            lambda: self._run_forward(step, payload, kind), kind="forward", tokens=sum(step.sequence_lengths)
        )
        if step.requires_grad:
            self._pending[step.step_id] = pending
        result = pb.ForwardResult(step_id=step.step_id, output=spec)
        await self._answer(pb.StreamStepsResponse(forward_result=result), encoded)

    def _check_place(self, step: pb.ForwardStep) -> None:
        if self._last_step_id is not None and step.step_id <= self._last_step_id:
            message = f"step_id must grow; {step.step_id} came after {self._last_step_id}"
            raise FieldInvalid(message, field="step_id")
        self._last_step_id = step.step_id
        bound = self._settings.max_pending_steps
        if step.requires_grad and len(self._pending) >= bound:
            message = f"{bound} forward passes await their backward pass: send it, or discard one, before the next"
            raise TooManyPendingSteps(message, max_pending_steps=str(bound))

    def _run_forward(self, step: pb.ForwardStep, payload: bytearray, kind: OutputKind) -> tuple[PendingStep, Encoded]:
        inputs_embeds_SD = finite_tensor(step.inputs_embeds, payload, "inputs_embeds")
        lengths, positions = tuple(step.sequence_lengths), tuple(step.output_positions)
        pending = run_forward(self._model, inputs_embeds_SD, lengths, positions, kind, step.requires_grad)
        return pending, encode_tensor(pending.outputs_N, self._encoding)

    async def _backward(self, step: pb.BackwardStep) -> None:
        pending = self._pending.get(step.step_id)
        if pending is None:
            message = f"no forward pass {step.step_id} awaits its backward pass: run the step again from its start"
            raise StepUnknown(message, step_id=str(step.step_id))
        checks.check_gradient(step.grad_output, pending.outputs_N.shape)
        payload = await self._frames.payload(step.grad_output)
        del self._pending[step.step_id]
        spec, encoded = await self._thread.run(
            lambda: run_backward(pending, step.grad_output, payload, self._encoding),
            kind="backward",
            tokens=len(pending.inputs_embeds_SD),
        )
        result = pb.BackwardResult(step_id=step.step_id, grad_inputs_embeds=spec)
        await self._answer(pb.StreamStepsResponse(backward_result=result), encoded)

    async def _answer(self, header: pb.StreamStepsResponse, payload: memoryview) -> None:
        await self._frames.send(header)
        for chunk in chunks_of(payload):
            await self._frames.send(pb.StreamStepsResponse(chunk=chunk))
