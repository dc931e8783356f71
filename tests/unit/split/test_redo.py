"""What is done again, and for how long."""

import threading

import pytest

from fednano.errors import FieldInvalid, InternalFault, NoProgress, PeerUnavailable, ServerBusy, StepUnknown, WireError
from fednano.split.redo import is_session_lost, redo


@pytest.mark.parametrize(
    "error",
    [
        PeerUnavailable("gone"),
        NoProgress("slow"),
        ServerBusy("full"),
        StepUnknown("forgotten"),
        InternalFault("RST_STREAM", code="INTERNAL"),
        InternalFault("torn", code="CANCELLED"),
    ],
)
def test_a_lost_session_is_told_by_its_error(error: WireError) -> None:
    assert is_session_lost(error)


@pytest.mark.parametrize("error", [InternalFault("a bug, as the server itself says"), FieldInvalid("wrong", field="x")])
def test_a_refusal_is_final(error: WireError) -> None:
    assert not is_session_lost(error)
    attempts = []

    def attempt() -> None:
        attempts.append(1)
        raise error

    with pytest.raises(type(error)):
        redo(attempt, what="a pass", give_up_after_s=5, abandoned=threading.Event())
    assert len(attempts) == 1


def test_the_answer_of_a_later_attempt_is_the_answer() -> None:
    failures = [PeerUnavailable("gone"), NoProgress("slow")]

    def attempt() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert redo(attempt, what="a pass", give_up_after_s=20, abandoned=threading.Event()) == "done"


def test_nothing_is_tried_again_once_the_work_is_abandoned() -> None:
    abandoned, attempts = threading.Event(), []

    def attempt() -> None:
        attempts.append(1)
        abandoned.set()
        raise PeerUnavailable("gone")

    with pytest.raises(PeerUnavailable):
        redo(attempt, what="a pass", give_up_after_s=60, abandoned=abandoned)
    assert len(attempts) == 1
