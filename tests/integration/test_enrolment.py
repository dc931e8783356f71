"""A machine becomes a client by one command: its key stays with it, a token is good once, and strangers get nothing."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from secure_federation import SecureFederation, secure_federation, tls
from test_roles import reason_of

from fednano.security.certificates import new_key, new_request
from fednano.security.identity import Role, identity_of
from fednano.security.join_token import JoinToken
from fednano.v1 import enrollment_service_pb2 as pb
from fednano.v1.aggregator_service_pb2 import JoinRunRequest
from fednano.v1.aggregator_service_pb2_grpc import AggregatorServiceStub
from fednano.v1.enrollment_service_pb2_grpc import EnrollmentServiceStub


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFederation]:
    with secure_federation(tmp_path_factory.mktemp("federation"), with_server=False) as running:
        yield running


def test_two_commands_make_a_client_that_may_call(federation: SecureFederation, tmp_path: Path) -> None:
    token = operate(federation, "client", "token", "create", "--id", "box-1", "--run", "demo", "--ttl", "10m")["token"]
    done = enroll(federation, token, tmp_path / "box", "--server", "llm.example:7001")
    assert json.loads(done.stdout)["clientId"] == "box-1"
    assert settings(tmp_path / "box") == {
        "FEDNANO_CLIENT_ID": "box-1",
        "FEDNANO_RUN": "runs/demo",
        "FEDNANO_AGGREGATOR": federation.addresses["aggregator"],
        "FEDNANO_TLS_CA": str(tmp_path / "box/ca.crt"),
        "FEDNANO_TLS_CERT": str(tmp_path / "box/tls.crt"),
        "FEDNANO_TLS_KEY": str(tmp_path / "box/tls.key"),
        "FEDNANO_STATE": str(tmp_path / "box/state"),
        "FEDNANO_SERVER": "llm.example:7001",
    }
    assert stat.S_IMODE((tmp_path / "box/tls.key").stat().st_mode) == 0o600
    assert join(federation, tmp_path / "box", "box-1") == "RESOURCE_NOT_FOUND"
    assert join(federation, tmp_path / "box", "box-2") == "NOT_THE_CLIENT"


def test_the_audit_log_says_whom_a_token_enrolled(federation: SecureFederation, tmp_path: Path) -> None:
    made = operate(federation, "client", "token", "create", "--id", "known")
    enroll(federation, made["token"], tmp_path / "box")
    lines = [json.loads(line) for line in federation.audit_log.read_text().splitlines()]
    done = [line for line in lines if line["what"] == "done"]
    created, enrolled = (line["resource"] for line in done if line["resource"].get("client_id") == "known")
    assert created["token_id"] == made["tokenId"]
    assert enrolled == {"client_id": "known"}


def test_an_operator_lists_tokens_and_withdraws_one(federation: SecureFederation, tmp_path: Path) -> None:
    kept = operate(federation, "client", "token", "create", "--id", "kept")
    gone = operate(federation, "client", "token", "create", "--id", "gone-before")
    assert operate(federation, "client", "token", "revoke", gone["tokenId"])["state"] == "STATE_REVOKED"
    # Who has the token itself at hand may give that.
    assert operate(federation, "client", "token", "revoke", gone["token"])["id"] == gone["tokenId"]
    listed = {one["id"]: one for one in operate(federation, "client", "token", "list")["joinTokens"]}
    assert listed[kept["tokenId"]]["state"] == "STATE_UNUSED"
    assert listed[gone["tokenId"]]["state"] == "STATE_REVOKED"
    assert not any(made["token"] in json.dumps(listed) for made in (kept, gone))
    assert "withdrawn by an operator" in enroll(federation, gone["token"], tmp_path / "box", check=False).stderr
    assert gone["token"].encode() not in federation.audit_log.read_bytes()


def test_what_was_enrolled_can_be_revoked_by_its_name(federation: SecureFederation, tmp_path: Path) -> None:
    enroll(federation, new_token(federation, client_id="gone"), tmp_path / "box")
    enrolled = identity_of(x509.load_pem_x509_certificate((tmp_path / "box/tls.crt").read_bytes()))
    assert federation.authority.revoke(Role.CLIENT, "gone") == [enrolled.serial]


def test_the_same_token_and_key_get_the_same_certificate_again(federation: SecureFederation) -> None:
    token, key = new_token(federation), new_key()
    first = ask(federation, token, new_request(key), "twice")
    # Signed anew, so other bytes: a client that lost the answer asks so.
    assert ask(federation, token, new_request(key), "twice") == first
    assert "BEGIN CERTIFICATE" in first


def test_a_used_token_is_no_good_for_another_key(federation: SecureFederation) -> None:
    token = new_token(federation)
    ask(federation, token, new_request(new_key()), "first")
    assert refused(federation, token, "second") == "JOIN_TOKEN_REFUSED used already, for first"


def test_an_expired_token_and_an_unknown_one_are_refused(federation: SecureFederation) -> None:
    expired = new_token(federation, ttl_ms=1)
    assert refused(federation, expired, "late") == "JOIN_TOKEN_REFUSED has expired"
    unknown = JoinToken.new(JoinToken.parse(expired).ca_sha256)
    assert refused(federation, str(unknown), "nobody") == "JOIN_TOKEN_REFUSED not known"


def test_a_token_without_a_name_makes_nobody_into_a_client_that_is_there(federation: SecureFederation) -> None:
    federation.holder(Role.CLIENT, "issued-by-hand")
    assert refused(federation, new_token(federation), "issued-by-hand") == "ALREADY_EXISTS already"
    enrolled = new_token(federation)
    ask(federation, enrolled, new_request(new_key()), "enrolled")
    assert refused(federation, new_token(federation), "enrolled") == "ALREADY_EXISTS already"
    new_token(federation, client_id="promised")
    assert refused(federation, new_token(federation), "promised") == "ALREADY_EXISTS already"


def test_a_request_that_is_none_uses_no_token_up(federation: SecureFederation) -> None:
    token = new_token(federation)
    with federation.stranger() as channel, pytest.raises(grpc.RpcError) as raised:
        EnrollmentServiceStub(channel).Enroll(pb.EnrollRequest(token=token, client_id="a", certificate_request="x"))
    assert reason_of(raised.value) == "FIELD_INVALID"
    assert "BEGIN CERTIFICATE" in ask(federation, token, new_request(new_key()), "after-all")


def test_an_aggregator_of_another_ca_is_told_nothing(federation: SecureFederation, tmp_path: Path) -> None:
    other = JoinToken.new(b"\1" * 32)
    done = enroll(federation, str(other), tmp_path / "box", check=False)
    assert done.returncode == 2
    assert "its CA has another digest" in done.stderr
    assert not (tmp_path / "box").exists()


def test_an_enrolment_that_broke_off_goes_on_with_its_key(federation: SecureFederation, tmp_path: Path) -> None:
    token = new_token(federation, client_id="again")
    enroll(federation, token, tmp_path / "box")
    key = (tmp_path / "box/tls.key").read_bytes()
    (tmp_path / "box/tls.crt").unlink()
    enroll(federation, token, tmp_path / "box")
    assert (tmp_path / "box/tls.key").read_bytes() == key
    assert join(federation, tmp_path / "box", "again") == "RESOURCE_NOT_FOUND"
    assert enroll(federation, token, tmp_path / "box", check=False).returncode == 2


def test_the_database_holds_no_token(federation: SecureFederation) -> None:
    token = new_token(federation)
    stored = b"".join(path.read_bytes() for path in (federation.folder / "state").glob("aggregator.sqlite3*"))
    assert JoinToken.parse(token).sha256.encode() in stored
    assert token.encode() not in stored
    assert token.encode() not in (federation.folder / "aggregator.log").read_bytes()
    assert token.encode() not in federation.audit_log.read_bytes()


def operate(federation: SecureFederation, *words: str) -> dict[str, Any]:
    """What a command of an operator with a bearer token prints."""
    variables = {
        "FEDNANO_AGGREGATOR": federation.addresses["ops"],
        "FEDNANO_TLS_CA": str(federation.authority.folder / "ca.crt"),
        "FEDNANO_TOKEN": federation.token("operator"),
    }
    done = fednano(*words, "--json", variables=variables)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def enroll(
    federation: SecureFederation, token: str, out: Path, *flags: str, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    words = ("client", "enroll", "--aggregator", federation.addresses["ops"], "--out", str(out), "--json", *flags)
    done = fednano(*words, variables={"FEDNANO_JOIN_TOKEN": token})
    assert done.returncode == 0 or not check, done.stderr
    return done


def fednano(*words: str, variables: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fednano.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, timeout=60, check=False)


def new_token(federation: SecureFederation, *, client_id: str = "", ttl_ms: int = 60_000) -> str:
    request = pb.CreateJoinTokenRequest(client_id=client_id)
    request.ttl.FromMilliseconds(ttl_ms)
    with federation.certified("aggregator", Role.OPERATOR, "ops") as channel:
        return EnrollmentServiceStub(channel).CreateJoinToken(request, timeout=10).token


def ask(federation: SecureFederation, token: str, request: bytes, client_id: str) -> str:
    """The certificate that the aggregator gives for the token."""
    asked = pb.EnrollRequest(token=token, client_id=client_id, certificate_request=request.decode())
    with federation.stranger() as channel:
        return EnrollmentServiceStub(channel).Enroll(asked, timeout=10).certificate_chain


def refused(federation: SecureFederation, token: str, client_id: str) -> str:
    """The reason of the refusal, and the words of its message that tell which it is."""
    with pytest.raises(grpc.RpcError) as raised:
        ask(federation, token, new_request(new_key()), client_id)
    message = raised.value.details()  # type: ignore[attr-defined]
    known = ("used already, for first", "has expired", "not known", "already")
    return f"{reason_of(raised.value)} {next(words for words in known if words in message)}"


def join(federation: SecureFederation, folder: Path, client_id: str) -> str:
    """Why the aggregator refuses the holder of the folder's certificate to join a run that is not there."""
    with grpc.secure_channel(federation.addresses["aggregator"], tls(folder)) as channel:
        request = JoinRunRequest(run="runs/absent", client_id=client_id, example_count=1)
        with pytest.raises(grpc.RpcError) as raised:
            AggregatorServiceStub(channel).JoinRun(request, timeout=10)
    return reason_of(raised.value)


def settings(folder: Path) -> dict[str, str]:
    lines = (folder / "client.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))
