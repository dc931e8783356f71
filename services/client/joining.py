"""What a client brings to a run, and whether the two fit each other."""

from collections.abc import Sequence
from pathlib import Path

from fednano.data.iconqa import PROBLEMS_FILE
from fednano.data.jsonl import EXAMPLES_FILE
from fednano.errors import ExamplesInvalid, ModelDigestMismatch, Unsupported
from fednano.model.edge import NanoEdge
from fednano.model.parts import EdgeParts, load_edge, resolve_model
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import run_pb2
from fednano.v1.split_service_pb2 import Model
from fednano.wire.encodings import ENCODING_NAMES, ENCODINGS_BY_NAME
from services.client.examples import ExampleSet, load_example_set
from services.client.local_work import Holdings, new_adapters
from services.client.settings import ClientSettings

METHODS = (
    run_pb2.METHOD_FEDNANO,
    run_pb2.METHOD_FEDNANO_EF,
    run_pb2.METHOD_FEDNANO_GRAM,
    run_pb2.METHOD_FEDAVG,
    run_pb2.METHOD_FEDPROX,
    run_pb2.METHOD_FEDDPA_F,
    run_pb2.METHOD_LOCAL,
    run_pb2.METHOD_CENTRALIZED,
    run_pb2.METHOD_TRIMMED_MEAN,
    run_pb2.METHOD_MEDIAN,
    run_pb2.METHOD_KRUM,
)


def load_holdings(settings: ClientSettings) -> Holdings:
    """Reads all that the client holds; raises ModelInvalid or ExamplesInvalid. Takes seconds."""
    parts = load_edge(resolve_model(settings.model) / "edge")
    if settings.pooled:
        return _pooled(settings.examples, parts, settings.evaluate_on)
    return Holdings(
        parts=parts,
        train=load_example_set(settings.examples, "train", parts),
        test=load_example_set(settings.examples, settings.evaluate_on, parts),
        split=settings.evaluate_on,
    )


def _pooled(folder: Path, parts: EdgeParts, split: str) -> Holdings:
    """The examples of all clients whose folders are in ``folder``, joined, and whose each test example is."""
    folders = sorted({path.parent for name in (EXAMPLES_FILE, PROBLEMS_FILE) for path in folder.glob(f"*/{name}")})
    if not folders:
        message = f"{folder} has no folder of examples in it, as --pooled needs: one for each client"
        raise ExamplesInvalid(message, file=str(folder))
    tests = {one.name: load_example_set(one, split, parts) for one in folders}
    return Holdings(
        parts=parts,
        train=_joined([load_example_set(one, "train", parts) for one in folders]),
        test=_joined(list(tests.values())),
        tests_of=tests,
        split=split,
    )


def _joined(sets: Sequence[ExampleSet]) -> ExampleSet:
    """The examples of all, one set after the other."""
    return ExampleSet(
        examples=tuple(example for one in sets for example in one.examples),
        encoded=tuple(encoded for one in sets for encoded in one.encoded),
    )


def join_request(settings: ClientSettings, holdings: Holdings) -> pb.JoinRunRequest:
    return pb.JoinRunRequest(
        run=settings.run,
        client_id=settings.client_id,
        display_name=settings.display_name or settings.client_id,
        example_count=len(holdings.train.examples),
        model_digest=holdings.parts.manifest.digest,
    )


def parameter_counts(holdings: Holdings, config: run_pb2.AdapterConfig) -> dict[str, int]:
    edge = NanoEdge(holdings.parts, new_adapters(config))
    return {
        "edge": sum(parameter.numel() for parameter in edge.parameters()),
        "adapter": sum(parameter.numel() for parameter in edge.adapters.parameters()),
    }


def check_config(config: run_pb2.RunConfig, holdings: Holdings) -> None:
    """Raises ModelDigestMismatch or Unsupported where this client cannot do what the run asks."""
    manifest = holdings.parts.manifest
    check_digest(config.model_digest, manifest.digest, "the run")
    if config.method not in METHODS:
        known = ", ".join(run_pb2.Method.Name(method) for method in METHODS)
        raise Unsupported(f"the run asks for {run_pb2.Method.Name(config.method)}; this client knows {known}")
    if config.adapter.hidden_size != manifest.hidden_size:
        message = (
            f"the run's adapters are for a hidden size of {config.adapter.hidden_size}, not {manifest.hidden_size}"
        )
        raise Unsupported(message, hidden_size=str(manifest.hidden_size))


def check_encoding(model: Model, name: str, peer: str) -> None:
    """Raises Unsupported where the server does not offer what ``--wire-encoding`` names."""
    if ENCODINGS_BY_NAME[name] not in model.encodings:
        offered = ", ".join(ENCODING_NAMES.get(encoding, str(encoding)) for encoding in model.encodings)
        raise Unsupported(
            f"{peer} does not take tensors as {name}: give --wire-encoding one of {offered}",
            field="wire_encoding",
            value=name,
        )


def check_digest(theirs: str, ours: str, peer: str) -> None:
    if theirs != ours:
        message = (
            f"{peer} works with the language model {theirs}, but this client's edge half was cut from {ours}:"
            " give both the two halves of one model (--model)"
        )
        raise ModelDigestMismatch(message, theirs=theirs, ours=ours)
