"""What docker-compose.yml promises in words, without an engine: confinement, networks, volumes, settings."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
OVERLAYS = ("deploy/compose/gpu.yml", "deploy/compose/remote-aggregator.yml")
VARIABLE = re.compile(r"\$\{(\w+)(?::?[-?]([^}]*))?\}")
SERVICES = ("server", "client", "aggregator")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    return parsed


def test_every_service_is_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "mem_limit" in service, name
        assert "ports" not in service or name == "grafana", name
        if "fednano-" in service["image"]:
            assert service["init"], name


def test_clients_share_a_network_with_the_server_and_the_aggregator_alone(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert list(services["client"]["networks"]) == ["edge"]
    assert {name for name, service in services.items() if "edge" in service.get("networks", ())} == {
        "client",
        "server",
        "aggregator",
    }
    internal = {name for name, network in compose["networks"].items() if network.get("internal")}
    assert internal == {"edge", "control", "metrics", "storage"}


def test_the_authoritys_key_is_mounted_by_the_service_that_makes_certificates_alone(compose: dict[str, Any]) -> None:
    holders = [
        name
        for name, service in compose["services"].items()
        if any(str(volume).startswith("authority:") for volume in service.get("volumes", ()))
    ]
    assert holders == ["certificates"]
    assert compose["services"]["certificates"]["network_mode"] == "none"


def test_every_volume_is_named_and_used(compose: dict[str, Any]) -> None:
    used = {str(volume).split(":")[0] for service in compose["services"].values() for volume in service["volumes"]}
    assert used == set(compose["volumes"])


def test_the_examples_of_settings_have_every_variable_with_its_default() -> None:
    told = dict(re.findall(r"^#(\w+)=(.*)$", (REPOSITORY / ".env.example").read_text(), re.MULTILINE))
    found: dict[str, str] = {}
    for path in ("docker-compose.yml", *OVERLAYS):
        found |= dict(VARIABLE.findall((REPOSITORY / path).read_text()))
    assert set(found) <= set(told)
    for name, default in VARIABLE.findall((REPOSITORY / "docker-compose.yml").read_text()):
        assert told[name] == default or name == "FEDNANO_DATABASE", name


def test_the_version_is_the_projects(compose: dict[str, Any]) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert compose["x-labels"]["VERSION"] == f"${{FEDNANO_VERSION:-{version}}}"


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_installs_only_its_services_extra(service: str) -> None:
    dockerfile = (REPOSITORY / "services" / service / "Dockerfile").read_text()
    assert f"ARG EXTRAS={service}\n" in dockerfile
    assert ("--no-deps torch" in dockerfile) == (service != "aggregator")
    assert "USER 10001:10001" in dockerfile
    assert "# syntax=" not in dockerfile
    assert f'ENTRYPOINT ["python", "-m", "services.{service}"]' in dockerfile


def test_prometheus_scrapes_where_the_services_serve_their_metrics(compose: dict[str, Any]) -> None:
    scraped = yaml.safe_load((REPOSITORY / "deploy/compose/prometheus.yml").read_text())["scrape_configs"][0]
    targets = {target for each in scraped["static_configs"] for target in each["targets"]}
    services = [compose["services"][name] for name in ("server", "aggregator")]
    assert targets == {service["environment"]["FEDNANO_METRICS_LISTEN"] for service in services}
    for service in services:
        (alias,) = service["networks"]["metrics"]["aliases"]
        assert service["environment"]["FEDNANO_METRICS_LISTEN"].startswith(f"{alias}:")
    assert "metrics" in compose["services"]["prometheus"]["networks"]


def test_every_file_that_compose_mounts_is_there(compose: dict[str, Any]) -> None:
    for name, config in compose["configs"].items():
        assert (REPOSITORY / config["file"]).is_file(), name
    mounted = {config["source"] for service in compose["services"].values() for config in service.get("configs", ())}
    assert mounted == set(compose["configs"])
