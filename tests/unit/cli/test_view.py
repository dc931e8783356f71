"""The view takes events in and says what changed."""

import io

import pytest
from rich.console import Console

from fednano.cli.view import RunView, round_line
from fednano.v1 import run_pb2


def test_away_from_a_terminal_each_finished_round_is_one_line() -> None:
    out = io.StringIO()
    view = RunView(Console(file=out, width=80))
    turn = run_pb2.Round(number=2, state=run_pb2.Round.STATE_TRAINING)
    with view:
        view.apply(run_pb2.Event(sequence=1, round=turn))
        turn.state = run_pb2.Round.STATE_SUCCEEDED
        turn.update_count = 5
        turn.metrics.update({"train/loss": 0.5, "test/accuracy": 0.75, "bytes/fisher": 1e6, "bytes/adapters": 2e6})
        view.apply(run_pb2.Event(sequence=2, round=turn))
    assert out.getvalue() == "round 2 succeeded: 5 updates, loss 0.500, accuracy 75.0%, 3.0 MB\n"


@pytest.mark.parametrize(("count", "masses"), [(2, "client-1 25% client-2 75%"), (11, "0% to 75% a client")])
def test_a_round_of_a_fisher_merge_tells_who_has_its_mass_and_how_far_to_trust_it(count: int, masses: str) -> None:
    shares = [0.25, 0.75, *[0.0] * (count - 2)]
    turn = run_pb2.Round(
        number=2,
        state=run_pb2.Round.STATE_SUCCEEDED,
        update_count=count,
        metrics={"fisher/effective_clients": 1.6, "fisher/reliability": 0.875},
        participants=[
            run_pb2.Participant(client=f"runs/demo/clients/client-{number}", metrics={"fisher/share": share})
            for number, share in enumerate(shares, start=1)
        ],
    )
    words = f"Fisher: 1.6 of {count} clients decide a parameter, mass {masses}, reliability 0.88"
    assert round_line(turn).endswith(f"; {words}")


def test_on_a_terminal_the_newest_round_shows_its_clients() -> None:
    out = io.StringIO()
    view = RunView(Console(file=out, width=100, force_terminal=True))
    turn = run_pb2.Round(number=1, participants=[run_pb2.Participant(client="runs/demo/clients/client-4")])
    with view:
        view.apply(run_pb2.Event(sequence=1, round=turn))
    assert "client-4" in out.getvalue()


def test_a_heartbeat_of_a_known_client_says_nothing() -> None:
    out = io.StringIO()
    view = RunView(Console(file=out, width=80))
    client = run_pb2.Client(name="runs/demo/clients/client-1", state=run_pb2.Client.STATE_ACTIVE, example_count=9)
    view.apply(run_pb2.Event(sequence=1, client=client))
    client.step = 5
    view.apply(run_pb2.Event(sequence=2, client=client))
    assert out.getvalue() == "client-1 active, 9 training examples\n"


def test_a_run_says_its_state_and_each_kind_of_wait_once() -> None:
    out = io.StringIO()
    view = RunView(Console(file=out, width=80))
    run = run_pb2.Run(name="runs/demo", state=run_pb2.Run.STATE_PENDING)
    for state, waiting_for in (
        (run_pb2.Run.STATE_PENDING, "clients 0/2"),
        (run_pb2.Run.STATE_PENDING, "clients 1/2"),
        (run_pb2.Run.STATE_RUNNING, ""),
        (run_pb2.Run.STATE_RUNNING, "updates 0/2"),
        (run_pb2.Run.STATE_RUNNING, ""),
        (run_pb2.Run.STATE_FAILED, ""),
    ):
        run.state, run.waiting_for = state, waiting_for
        if state == run_pb2.Run.STATE_FAILED:
            run.failure.message = "too few updates"
        view.apply(run_pb2.Event(run=run_pb2.Run.FromString(run.SerializeToString())))
    assert out.getvalue().splitlines() == [
        "run pending, waiting for clients 0/2",
        "run running",
        "run running, waiting for updates 0/2",
        "run failed: too few updates",
    ]


def test_a_refused_update_is_told_once_with_its_reason() -> None:
    out = io.StringIO()
    view = RunView(Console(file=out, width=80))
    part = run_pb2.Participant(client="runs/demo/clients/client-4", refusal="not\x1b finite")
    for _ in range(2):
        view.apply(run_pb2.Event(round=run_pb2.Round(number=1, participants=[part])))
    assert out.getvalue() == "round 1: the update of client-4 was refused: not\ufffd finite\n"


def test_the_live_area_shows_progress_waits_clients_and_what_they_sent() -> None:
    out = io.StringIO()
    view = RunView(Console(file=out, width=120, force_terminal=True))
    config = run_pb2.RunConfig(round_count=4)
    run = run_pb2.Run(name="runs/demo", state=run_pb2.Run.STATE_RUNNING, waiting_for="updates 1/2", config=config)
    part = run_pb2.Participant(client="runs/demo/clients/client-4", metrics={"bytes/fisher": 2e6, "train/loss": 0.25})
    done = [run_pb2.Round(number=number, state=run_pb2.Round.STATE_SUCCEEDED) for number in (0, 1)]
    lost = run_pb2.Client(name=part.client, state=run_pb2.Client.STATE_LOST)
    subjects = [{"run": run}, *({"round": turn} for turn in done), {"client": lost}]
    with view:
        for subject in [*subjects, {"round": run_pb2.Round(number=2, participants=[part])}]:
            view.apply(run_pb2.Event(**subject))
    shown = out.getvalue()
    for words in ("waiting for updates 1/2", "1 of 4 rounds", "client-4", "lost", "0.250", "2.0 MB"):
        assert words in shown
