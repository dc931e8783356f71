"""Creating a run once, however often it is asked for."""

import hashlib
import uuid

from sqlalchemy import Connection

from fednano.errors import AlreadyExists
from fednano.names import RunName, check_id
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as pb
from services.aggregator.labels import check_label
from services.aggregator.run_config_check import check_config
from services.aggregator.store import runs


def create_run(connection: Connection, request: pb.CreateRunRequest) -> run_pb2.Run:
    """The new run, or the one that an earlier request with the same request_id and contents made.

    Raises AlreadyExists where the run_id is taken, or the request_id by a request with other contents.
    """
    if request.run_id:
        check_id(request.run_id, "run_id")
    check_label(request.request_id, "request_id")
    check_label(request.run.display_name, "run.display_name")
    check_config(request.run.config)
    known = runs.find_run_by_request(connection, request.request_id) if request.request_id else None
    if known is not None:
        _check_same(known, request)
        return known
    run_id = request.run_id or f"run-{uuid.uuid4().hex[:12]}"
    taken = runs.find_run(connection, run_id)
    if taken is not None:
        raise _exists(taken, request, f"{taken.name} exists already: choose another run_id, or none")
    return runs.insert_run(connection, run_id, request.run.display_name, request.run.config, request.request_id)


def _check_same(known: run_pb2.Run, request: pb.CreateRunRequest) -> None:
    is_same_name = not request.run_id or known.name == str(RunName(run=request.run_id))
    if not is_same_name or _contents_sha256(known) != _contents_sha256(request.run):
        raise _exists(known, request, f"this request_id made {known.name}, with other contents: take a new one")


def _exists(known: run_pb2.Run, request: pb.CreateRunRequest, words: str) -> AlreadyExists:
    accepted, offered = _contents_sha256(known), _contents_sha256(request.run)
    return AlreadyExists(words, name=known.name, accepted=accepted, offered=offered)


def _contents_sha256(run: run_pb2.Run) -> str:
    """Over what a request decides about a run."""
    decided = run_pb2.Run(display_name=run.display_name, config=run.config)
    return hashlib.sha256(decided.SerializeToString(deterministic=True)).hexdigest()
