"""What deploy/edge promises in words, without an engine: nothing comes in, data is only read, settings are known."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.client.settings import ClientSettings

EDGE = Path(__file__).resolve().parents[3] / "deploy" / "edge"
VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^}]*))?\}")
UNITS = ("fednano-client.service", "fednano-edge.service")
# systemd's own scale, from 0 to 10.
MOST_EXPOSURE = 25


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read("compose.yml")


def read(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((EDGE / name).read_text())
    return parsed


def test_nothing_comes_in_and_no_network_is_shared(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert not {"ports", "expose", "network_mode", "networks", "privileged", "cap_add"} & set(service)
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "10001:10001"


def test_data_is_only_read_and_training_is_kept(compose: dict[str, Any]) -> None:
    mounted = compose["services"]["client"]["volumes"]
    assert [volume for volume in mounted if not volume.endswith(":ro")] == ["state:/state"]
    assert list(compose["volumes"]) == ["state"]
    assert {volume.split(":")[-2] for volume in mounted} >= {"/identity", "/examples", "/models"}


def test_enrolling_writes_what_the_client_reads(compose: dict[str, Any]) -> None:
    enroll, client = compose["services"]["enroll"], compose["services"]["client"]
    assert enroll["entrypoint"][:5] == ["fednano", "client", "enroll", "--out", "/identity"]
    folder = enroll["volumes"][0].removesuffix(":/identity")
    assert f"{folder}:/identity:ro" in client["volumes"]
    assert client["env_file"][0]["path"] == f"{folder}/client.env"
    assert "FEDNANO_SERVER" not in client["environment"]


@pytest.mark.parametrize("name", ["compose.yml", "gpu.yml"])
def test_every_setting_is_one_of_the_clients(name: str) -> None:
    fields = {f"FEDNANO_{field.upper()}" for field in ClientSettings.model_fields}
    given = {key for key in read(name)["services"]["client"]["environment"] if key.startswith("FEDNANO_")}
    assert given <= fields


def test_the_examples_of_settings_have_every_variable_with_its_default() -> None:
    text = (EDGE / ".env.example").read_text()
    told = dict(re.findall(r"^#(\w+)=(.*)$", text, re.MULTILINE))
    for name in ("compose.yml", "gpu.yml"):
        for variable, default in VARIABLE.findall((EDGE / name).read_text()):
            assert told[variable] == default or (name, variable) == ("gpu.yml", "FEDNANO_CLIENT_MEMORY"), variable
    others = {variable for variable, _ in VARIABLE.findall((EDGE / "compose.yml").read_text())}
    settings = {f"FEDNANO_{field.upper()}" for field in ClientSettings.model_fields}
    proxies = {"https_proxy", "grpc_proxy", "no_proxy"}
    assert set(told) <= others | settings | proxies | {"FEDNANO_CUDA_INDEX"}


def test_the_client_takes_the_values_of_the_examples_of_settings() -> None:
    told = dict(re.findall(r"^#FEDNANO_(\w+)=(.*)$", (EDGE / ".env.example").read_text(), re.MULTILINE))
    given = {name.lower(): value for name, value in told.items() if name.lower() in ClientSettings.model_fields}
    settings = ClientSettings(insecure=True, client_id="a", examples=Path("e"), aggregator="a:1", **given)  # type: ignore[arg-type]
    assert settings.run == "runs/demo"


def test_the_gpu_is_reserved() -> None:
    devices = read("gpu.yml")["services"]["client"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


@pytest.mark.parametrize("files", [("compose.yml",), ("compose.yml", "gpu.yml")])
def test_compose_takes_the_files(files: tuple[str, ...]) -> None:
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    version = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if version.returncode != 0:
        pytest.skip("docker has no compose here")
    chosen = [word for name in files for word in ("-f", name)]
    command = ["docker", "compose", *chosen, "config", "--quiet"]
    checked = subprocess.run(command, cwd=EDGE, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # What a unit starts is looked for on this machine, which need not have it.
    text = re.sub(r"(?m)^(Exec\w+=)\S+", rf"\g<1>{sys.executable}", (EDGE / unit).read_text())
    (tmp_path / unit).write_text(text.replace("Requires=docker.service\n", ""))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / unit)]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_client_without_a_container_is_confined_by_systemd() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(EDGE / UNITS[0])]
    judged = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert judged.returncode == 0, judged.stdout


def test_the_client_without_a_container_comes_back_after_failures_and_reboots() -> None:
    text = (EDGE / UNITS[0]).read_text()
    for line in (
        "Restart=on-failure",
        "RestartPreventExitStatus=2",
        "StateDirectory=fednano",
        "StartLimitIntervalSec=0",
    ):
        assert f"\n{line}\n" in text
    assert "python -m services.client --state %S/fednano" in text
    for unit in UNITS:
        assert "WantedBy=multi-user.target" in (EDGE / unit).read_text()
