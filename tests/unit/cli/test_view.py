"""The view takes events in and says what changed."""

import io

from rich.console import Console

from fednano.cli.view import RunView
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
