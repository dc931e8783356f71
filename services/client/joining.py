"""What a client brings to a run, and whether the two fit each other."""

from collections.abc import Callable
from pathlib import Path

import torch

from fednano.data.iconqa import PROBLEMS_FILE
from fednano.data.jsonl import EXAMPLES_FILE
from fednano.errors import ExamplesInvalid, ModelDigestMismatch, Unsupported
from fednano.model.edge import NanoEdge
from fednano.model.parts import EdgeParts, load_edge, resolve_model
from fednano.model.placement import choose_device, choose_encoder_type, place
from fednano.telemetry import get_logger
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import run_pb2
from fednano.v1.split_service_pb2 import Model
from fednano.wire.encodings import ENCODING_NAMES, ENCODINGS_BY_NAME
from services.client.examples import joined, load_example_set
from services.client.feature_cache import FeatureCache, features_key
from services.client.features import FeatureBounds, Features
from services.client.local_work import Holdings, new_adapters
from services.client.settings import ClientSettings

log = get_logger("client.joining")

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


def load_holdings(settings: ClientSettings, check: Callable[[], None] = lambda: None) -> Holdings:
    """Reads all that the client holds; raises ModelInvalid, ExamplesInvalid or SettingsInvalid.

    Takes seconds, or hours where many pictures are encoded for the first time; ``check`` may raise to end it.
    """
    edge_folder = resolve_model(settings.model) / "edge"
    device = choose_device(settings.device)
    parts = place(load_edge(edge_folder), device, choose_encoder_type(settings.encoder_type, device))
    features = Features(parts, _bounds(settings), _cache(settings, parts, edge_folder))
    log.info("edge_ready", device=str(device), encoder_type=str(_encoder_type(parts)).removeprefix("torch."))
    try:
        if settings.pooled:
            return _pooled(settings, parts, features, check)
        train, test = (
            load_example_set(settings.examples, split, parts, features, check)
            for split in ("train", settings.evaluate_on)
        )
    except BaseException:
        features.close()
        raise
    return Holdings(parts=parts, train=train, test=test, split=settings.evaluate_on)


def _bounds(settings: ClientSettings) -> FeatureBounds:
    return FeatureBounds(
        encoder_batch=settings.encoder_batch,
        memory_bytes=settings.feature_memory_bytes,
        decode_workers=settings.decode_workers,
    )


def _cache(settings: ClientSettings, parts: EdgeParts, edge_folder: Path) -> FeatureCache | None:
    """None where nothing is to be kept on disk, or another process keeps it."""
    folder = settings.feature_folder
    if folder is None or not settings.feature_cache_bytes:
        return None
    key = features_key(edge_folder, _encoder_type(parts), parts.token_embedding.weight.device)
    cache = FeatureCache(folder, key, settings.feature_cache_bytes)
    return cache if cache.open() else None


def _encoder_type(parts: EdgeParts) -> torch.dtype:
    return next(parts.vision_encoder.parameters()).dtype


def _pooled(settings: ClientSettings, parts: EdgeParts, features: Features, check: Callable[[], None]) -> Holdings:
    """The examples of all clients whose folders are in the one of examples, joined, and whose each test example is."""
    folders = pooled_folders(settings.examples)
    tests = {one.name: load_example_set(one, settings.evaluate_on, parts, features, check) for one in folders}
    return Holdings(
        parts=parts,
        train=joined([load_example_set(one, "train", parts, features, check) for one in folders]),
        test=joined(list(tests.values())),
        tests_of=tests,
        split=settings.evaluate_on,
    )


def pooled_folders(folder: Path) -> list[Path]:
    """The clients' folders of examples in this one. Raises ExamplesInvalid where there is none."""
    names = (EXAMPLES_FILE, PROBLEMS_FILE)
    folders = sorted({path.parent for name in names for path in folder.glob(f"*/{name}")})
    if not folders:
        message = f"{folder} has no folder of examples in it, as --pooled needs: one for each client"
        raise ExamplesInvalid(message, file=str(folder))
    return folders


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
