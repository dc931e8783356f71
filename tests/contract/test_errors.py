"""The error table is total: classes, reasons, gRPC codes and the contract's comments cover each other."""

import re
from pathlib import Path

import grpc
import pytest

from fednano.errors import WireError, wire_error_classes
from fednano.rpc.status import reason_name, to_status
from fednano.v1 import error_reason_pb2 as pb

PROTO = Path(__file__).resolve().parents[2] / "proto/fednano/v1/error_reason.proto"


def documented_codes() -> dict[str, str]:
    """Reason name -> the gRPC code that its comment in the contract begins with."""
    pattern = r"  // ([A-Z_]+)[.:][^{}=]*?\n  ERROR_REASON_([A-Z_]+) = "
    return {reason: code for code, reason in re.findall(pattern, PROTO.read_text())}


def test_every_reason_has_exactly_one_class() -> None:
    reasons = [error_class.reason for error_class in wire_error_classes()]
    assert reasons == [value for value in pb.ErrorReason.values() if value != pb.ERROR_REASON_UNSPECIFIED]


@pytest.mark.parametrize("error_class", wire_error_classes())
def test_every_class_has_the_code_that_the_contract_states(error_class: type[WireError]) -> None:
    assert documented_codes()[reason_name(error_class)] == error_class.code


@pytest.mark.parametrize("error_class", wire_error_classes())
def test_every_class_becomes_a_status_of_its_code(error_class: type[WireError]) -> None:
    status = to_status(error_class("words", name="runs/a"))
    assert status.code == grpc.StatusCode[error_class.code].value[0]
    assert status.message == "words"
