"""One Decode stream: a batch of prompts, continued position by position over caches that end with the stream."""

from structlog.contextvars import bind_contextvars

from fednano.errors import FieldInvalid, StreamMalformed
from fednano.model.decoding import check_decoding_lengths
from fednano.model.language import LanguageModel
from fednano.model.packing import OutputKind
from fednano.telemetry import get_logger
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from services.server import checks
from services.server.cache_memory import StreamRoom
from services.server.decode_pass import DecodeWork
from services.server.frames import Frames
from services.server.passes import Arrived
from services.server.requests import DecodeRequest
from services.server.seat import Seat
from services.server.settings import ServerSettings

log = get_logger("server.decoding")

DecodeFrames = Frames[pb.DecodeRequest, pb.DecodeResponse]


class DecodeSession:
    """The caches of one client's answers live here until the stream ends."""

    def __init__(
        self, frames: DecodeFrames, model: LanguageModel, seat: Seat, room: StreamRoom, settings: ServerSettings
    ) -> None:
        self._frames = frames
        self._model = model
        self._seat = seat
        self._room = room
        self._settings = settings
        self._encoding: tpb.Encoding.ValueType = tpb.ENCODING_RAW
        self._state = model.start_decoding()

    async def run(self) -> None:
        """Returns when the client has closed its side."""
        opening = await self._frames.opening()
        if opening is None:
            return
        opened = opening.open_session if opening.HasField("open_session") else None
        session = checks.check_open(opened, self._model.manifest.digest, self._settings.wire_encodings)
        self._encoding = session.encoding
        self._frames.agree(session.encoding)
        answer = pb.SessionOpened(max_pending_steps=self._settings.max_pending_steps, encoding=session.encoding)
        await self._frames.send(pb.DecodeResponse(session_opened=answer))
        bind_contextvars(run=session.run)
        log.info("decoding_opened")
        # Answers that were begun may end while the server stops, as long as there is grace.
        while (request := await self._frames.next_header(begun=bool(self._state.lengths))) is not None:
            if not request.HasField("step"):
                raise StreamMalformed(f"{request.WhichOneof('frame') or 'an empty frame'} came where a step was due")
            await self._step(request.step)

    async def _step(self, step: pb.DecodeStep) -> None:
        kind = self._check(step)
        with self._seat.room(step.inputs_embeds.size_bytes):
            self._room.resize(self._state.capacity(step.sequence_lengths))
            payload = await self._frames.payload(step.inputs_embeds)
            work = DecodeWork(
                state=self._state,
                inputs_embeds=Arrived(spec=step.inputs_embeds, payload=payload, encoding=self._encoding),
                sequence_lengths=tuple(step.sequence_lengths),
            )
            tokens = sum(step.sequence_lengths)
            request = DecodeRequest(
                client=self._seat.client, token_count=tokens, stream=self._seat, work=work, output_kind=kind
            )
            spec, encoded = await self._seat.decode(request)
        await self._frames.send(pb.DecodeResponse(result=pb.DecodeResult(output=spec)))
        for chunk in self._frames.chunks(encoded):
            await self._frames.send(pb.DecodeResponse(chunk=chunk))
        self._seat.awaits_next()

    def _check(self, step: pb.DecodeStep) -> OutputKind:
        bound, lengths = self._settings.max_pass_tokens, tuple(step.sequence_lengths)
        tokens = checks.check_embeds(step.inputs_embeds, self._model.hidden_size, bound)
        check_decoding_lengths(self._state, lengths)
        if sum(lengths) != tokens:
            message = f"sequence_lengths must sum to the {tokens} rows of inputs_embeds"
            raise FieldInvalid(message, field="sequence_lengths")
        ends = self._state.ends(lengths)
        checks.check_longest(max(ends), self._model)
        if sum(ends) > bound:
            message = f"a stream's caches hold at most {bound} tokens: decode fewer answers at a time"
            raise FieldInvalid(message, field="sequence_lengths")
        return checks.check_output_kind(step.output_kind)
