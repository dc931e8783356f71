"""Whether an update that a client announces may come in, judged by its header and the database alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from fednano.adapter_layout import adapter_shapes
from fednano.errors import AlreadyExists, FieldInvalid, RoundClosed
from fednano.gram_layout import gram_shapes
from fednano.names import ClientName, RoundName
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import artifact_pb2, run_pb2
from services.aggregator.store import clients, rounds, runs
from services.aggregator.store.participants import Participation, load_participation, update_count
from services.aggregator.store.situations import wanted_artifacts
from services.aggregator.update_check import check_base, max_file_bytes

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A header whose names could be read."""

    header: pb.UpdateHeader
    name: RoundName
    client: ClientName

    @property
    def total_bytes(self) -> int:
        return sum(spec.size_bytes for spec in self.header.artifacts)


@dataclass(frozen=True, kw_only=True)
class Admission:
    """``is_known``: these very digests were accepted before, and there is nothing left to send."""

    is_known: bool
    update_count: int
    shapes: Mapping[artifact_pb2.ArtifactKind.ValueType, Shapes]

    @property
    def max_file_bytes(self) -> int:
        return max(max_file_bytes(shapes) for shapes in self.shapes.values())


def read_offer(header: pb.UpdateHeader) -> Offer:
    """Raises FieldInvalid where the header makes no sense whatever the run."""
    name, client = RoundName.parse(header.round, "header.round"), ClientName.parse(header.client, "header.client")
    if name.run != client.run:
        raise FieldInvalid(f"header.client is {client}, but the round is {name}", field="header.client")
    return Offer(header=header, name=name, client=client)


def admit(connection: Connection, offer: Offer) -> Admission:
    """Raises the exact refusal where the update may not come in; AlreadyExists names both digests."""
    name, header = offer.name, offer.header
    run = runs.load_run(connection, name.run)
    part = load_participation(connection, name, offer.client)
    admission = Admission(
        is_known=_is_known(part, offer),
        update_count=update_count(connection, name),
        shapes=_shapes(run.config),
    )
    if not admission.is_known:
        _check_kinds(wanted_artifacts(connection, offer.client, run.config), header)
        _check_example_count(clients.load_client(connection, offer.client), header)
        base_sha256 = _open_base_sha256(connection, run, name)
        check_base(header.client, header.base_adapter_sha256, part.base_sha256 or base_sha256)
    return admission


def _shapes(config: run_pb2.RunConfig) -> dict[artifact_pb2.ArtifactKind.ValueType, Shapes]:
    """What the files of an update may hold, by kind."""
    adapter = config.adapter
    alike = adapter_shapes(adapter.modalities, adapter.hidden_size, adapter.rank)
    shapes = {artifact_pb2.ARTIFACT_KIND_ADAPTER: alike, artifact_pb2.ARTIFACT_KIND_FISHER: alike}
    if config.method == run_pb2.METHOD_FEDNANO_GRAM:
        grams = gram_shapes(adapter.modalities, adapter.hidden_size, adapter.rank)
        return shapes | {artifact_pb2.ARTIFACT_KIND_GRAM: grams}
    return shapes


def _is_known(part: Participation, offer: Offer) -> bool:
    if not part.is_updated:
        return False
    accepted = part.artifact_sha256s
    offered = [spec.sha256 for spec in offer.header.artifacts]
    if accepted == offered:
        return True
    ours, theirs = next(
        (pair for pair in zip(accepted, offered, strict=False) if pair[0] != pair[1]),
        (" ".join(accepted), " ".join(offered)),
    )
    raise AlreadyExists(
        f"{offer.client} already gave {offer.name} an update with {ours}; {theirs} comes too late",
        name=str(offer.name),
        accepted=ours,
        offered=theirs,
    )


def _check_kinds(wanted: "tuple[artifact_pb2.ArtifactKind.ValueType, ...]", header: pb.UpdateHeader) -> None:
    if tuple(spec.kind for spec in header.artifacts) != wanted:
        kinds = ", ".join(artifact_pb2.ArtifactKind.Name(kind) for kind in wanted)
        raise FieldInvalid(f"header.artifacts must announce {kinds}, in that order", field="header.artifacts")


def _check_example_count(client: run_pb2.Client, header: pb.UpdateHeader) -> None:
    """An example counts once, however many epochs it was seen in: the merge weighs by it."""
    if not 1 <= header.example_count <= client.example_count:
        raise FieldInvalid(
            f"header.example_count is {header.example_count}, but must be 1 to {client.example_count}, which is what"
            f" {client.name} joined with",
            field="header.example_count",
        )


def _open_base_sha256(connection: Connection, run: run_pb2.Run, name: RoundName) -> str:
    """The adapter that the round's updates start from; raises RoundClosed where it takes none."""
    head = rounds.load_head(connection, name)
    if run.state not in runs.ENDED and head.state == run_pb2.Round.STATE_TRAINING:
        return head.base_sha256
    words = run_pb2.Round.State.Name(head.state)
    raise RoundClosed(f"{name} takes no more updates: it is {words}; poll for a task", name=str(name), state=words)
