"""What the demo makes of its flags; that it runs is shown in tests/integration/test_demo.py."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fednano.cli import demo_command
from fednano.cli.app import app
from fednano.cli.options import DemoOptions, run_config
from fednano.cli.presets import PRESETS, server_flags
from fednano.v1 import split_service_pb2
from fednano.v1.run_pb2 import FisherConfig as Fisher


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[DemoOptions]:
    """The options of the demos that were asked for; none is run."""
    found: list[DemoOptions] = []
    monkeypatch.setattr(demo_command, "_demo", lambda options, _: found.append(options))
    return found


def invoke(*flags: str) -> None:
    done = CliRunner().invoke(app, ["demo", *flags])
    assert done.exit_code == 0, done.output


def test_examples_are_a_count_or_a_folder(asked: list[DemoOptions]) -> None:
    invoke("--examples", "64")
    invoke("--examples", "photos/64")
    assert [(options.train_examples, options.examples) for options in asked] == [(64, None), (1000, Path("photos/64"))]


def test_a_preset_brings_its_model_and_its_settings(asked: list[DemoOptions]) -> None:
    invoke("--preset", "smol", "--rounds", "2")
    (options,) = asked
    config = run_config(options, split_service_pb2.Model(digest="ab" * 32, hidden_size=576))
    assert (options.model, options.clients, options.train_examples) == ("smol", 2, 64)
    assert config.train.learning_rate == PRESETS["smol"].learning_rate
    assert config.evaluate.max_new_tokens == 8


def test_what_is_said_counts_for_more_than_the_preset(asked: list[DemoOptions]) -> None:
    invoke("--preset", "smol", "--clients", "3", "--train-examples", "30", "--model", "elsewhere/smol")
    (options,) = asked
    assert (options.model, options.clients, options.train_examples) == ("elsewhere/smol", 3, 30)


def test_what_the_method_is_told_reaches_the_run_and_nothing_else_changes(asked: list[DemoOptions]) -> None:
    model = split_service_pb2.Model(digest="ab" * 32, hidden_size=128)
    invoke()
    invoke("--fisher-normalization", "none", "--fisher-floor", "0", "--fisher-max-share", "1", "--fisher-at", "start")
    plain, told = (run_config(options, model) for options in asked)
    assert (plain.fisher.normalization, plain.fisher.floor) == (Fisher.NORMALIZATION_L2, 1.0)
    assert told.fisher == Fisher(normalization=Fisher.NORMALIZATION_NONE, max_share=1.0, at=Fisher.POINT_START)
    told.fisher.CopyFrom(plain.fisher)
    assert told == plain
    assert asked[0].fingerprint != asked[1].fingerprint


def test_a_server_of_a_models_folder_gets_no_presets_flags() -> None:
    assert server_flags("smol") == ["--compute-type", "bfloat16", "--batching", "off"]
    assert server_flags("some/folder") == server_flags("nano") == []
