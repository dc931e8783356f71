"""A run's configuration: flags before the file before the defaults."""

from pathlib import Path

import pytest

from fednano.cli.method_flags import FisherKind, FisherNormalization, FisherPoint, MethodFlags, MethodName
from fednano.cli.run_config import ConfigFlags, run_config
from fednano.errors import SettingsInvalid
from fednano.v1 import run_pb2

MODEL = ConfigFlags(model_digest="d" * 64, hidden_size=8)


def test_the_defaults_are_whole_but_for_the_model() -> None:
    config = run_config(None, MODEL)
    assert config.method == run_pb2.METHOD_FEDNANO
    assert (config.round_count, config.clients_per_round, config.min_updates) == (10, 2, 2)
    assert (config.model_digest, config.adapter.hidden_size) == ("d" * 64, 8)


def test_a_round_needs_more_than_half_of_its_clients_unless_said_otherwise() -> None:
    assert run_config(None, ConfigFlags(clients=5)).min_updates == 3
    assert run_config(None, ConfigFlags(clients=5, min_updates=5)).min_updates == 5


def test_a_fraction_takes_the_place_of_a_number_of_clients() -> None:
    config = run_config(None, ConfigFlags(client_fraction=0.5))
    assert (config.clients_per_round, config.client_fraction, config.min_updates) == (0, 0.5, 1)


def test_a_file_in_json_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(
        '{"roundCount": 3, "roundTimeout": "90s", "train": {"seed": "7"}, "adapter": {"modalities": ["text"]}}'
    )
    config = run_config(file, MODEL)
    assert (config.round_count, config.round_timeout.seconds, config.train.seed) == (3, 90, 7)
    assert (config.train.batch_size, list(config.adapter.modalities)) == (8, ["text"])


def test_the_same_names_work_in_toml(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('roundCount = 3\nmethod = "METHOD_KRUM"\n[merge]\nkrumHostileCount = 1\n')
    config = run_config(file, MODEL)
    assert (config.round_count, config.method, config.merge.krum_hostile_count) == (3, run_pb2.METHOD_KRUM, 1)


def test_a_flag_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"roundCount": 3, "clientFraction": 0.5, "clientsPerRound": 0}')
    config = run_config(file, ConfigFlags(rounds=4, clients=6, method=MethodName.TRIMMED_MEAN, round_timeout_s=1.5))
    assert (config.round_count, config.clients_per_round, config.client_fraction) == (4, 6, 0.0)
    assert (config.method, config.round_timeout.ToMilliseconds()) == (run_pb2.METHOD_TRIMMED_MEAN, 1500)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("run.json", '{"rounds": 3}', 'no field named "rounds"'),
        ("run.json", "{", "Expecting property name"),
        ("run.json", "[]", "must hold the fields of RunConfig"),
        ("run.toml", "roundCount = ", "Invalid value"),
        ("run.yaml", "roundCount: 3", "must end with .json or .toml"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, text: str, words: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(SettingsInvalid, match=words) as refusal:
        run_config(file, MODEL)
    assert refusal.value.message.startswith(f"--config: {file}")


def test_every_method_of_the_command_line_is_one_of_the_contract() -> None:
    for method in MethodName:
        assert run_config(None, ConfigFlags(method=method)).method != run_pb2.METHOD_UNSPECIFIED


def test_the_methods_settings_are_flags(tmp_path: Path) -> None:
    flags = MethodFlags(
        proximal_mu=0.1,
        fisher_at=FisherPoint.PATH,
        fisher_kind=FisherKind.MC,
        fisher_normalization=FisherNormalization.RANK,
        fisher_power=0.5,
        fisher_floor=0.0,
        fisher_max_share=1.0,
        fisher_max_examples=7,
        fisher_moving_average=0.9,
        gram_step=0.0,
        gram_damping=0.2,
        global_weight=0.0,
        personal_epochs=3,
    )
    file = tmp_path / "run.toml"
    file.write_text('[fisher]\nat = "POINT_START"\npower = 2.0\n[gram]\nstep = 1.0\n[personal]\nglobalWeight = 0.75\n')
    config, before = run_config(file, MODEL, flags), run_config(file, MODEL)
    fisher = run_pb2.FisherConfig
    assert config.fisher == fisher(
        at=fisher.POINT_PATH,
        kind=fisher.KIND_MC,
        normalization=fisher.NORMALIZATION_RANK,
        power=0.5,
        max_share=1.0,
        max_examples=7,
        moving_average=0.9,
    )
    assert (before.fisher.at, before.fisher.power, before.gram.step) == (fisher.POINT_START, 2.0, 1.0)
    assert (config.train.proximal_mu, config.gram.step, config.gram.damping) == (0.1, 0.0, 0.2)
    assert config.gram.HasField("step")
    assert (config.personal.global_weight, config.personal.local_epochs) == (0.0, 3)
    assert config.personal.HasField("global_weight")


def test_pooled_examples_make_a_run_of_one_client() -> None:
    config = run_config(None, ConfigFlags(method=MethodName.CENTRALIZED))
    assert (config.clients_per_round, config.min_updates) == (1, 1)
