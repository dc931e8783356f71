"""Compose takes every combination of files and profiles that the manual names."""

import pytest
from federation import Federation

GPU, REMOTE = "deploy/compose/gpu.yml", "deploy/compose/remote-aggregator.yml"
ELSEWHERE = {"FEDNANO_REMOTE_AGGREGATOR": "aggregator.example.org:7000", "FEDNANO_REMOTE_IDENTITIES": "./identities"}
OVERLAYS = [(), (GPU,), (REMOTE,), (GPU, REMOTE)]
PROFILES = [(), ("monitoring",), ("postgres",), ("operator",), ("*",)]


@pytest.mark.parametrize("overlays", OVERLAYS)
@pytest.mark.parametrize("profiles", PROFILES)
def test_compose_takes_the_files(built: Federation, overlays: tuple[str, ...], profiles: tuple[str, ...]) -> None:
    files = [argument for file in ("docker-compose.yml", *overlays) for argument in ("--file", file)]
    chosen = [argument for profile in profiles for argument in ("--profile", profile)]
    built.must(*files, *chosen, "config", "--quiet", environment=ELSEWHERE)


def test_a_remote_aggregator_takes_none_of_ours(built: Federation) -> None:
    files = ("--file", "docker-compose.yml", "--file", REMOTE)
    services = built.must(*files, "config", "--services", environment=ELSEWHERE).split()
    assert {"client", "server", "run"} <= set(services)
    assert not {"aggregator", "certificates"} & set(services)


def test_a_remote_aggregator_must_be_named(built: Federation) -> None:
    answer = built.compose("--file", "docker-compose.yml", "--file", REMOTE, "config", "--quiet")
    assert answer.code != 0
    assert "required variable" in answer.text
