"""What the chart makes of its values, rendered by helm: one writer, no secret, nobody who may do more than needed."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.aggregator.settings import AggregatorSettings
from services.server.settings import ServerSettings

REPOSITORY = Path(__file__).resolve().parents[3]
CHART = REPOSITORY / "deploy" / "helm" / "fednano"
SETS = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
SETTINGS = {"server": ServerSettings, "aggregator": AggregatorSettings}
# What the chart itself decides, and therefore takes no values for.
DECIDED = {
    "both": "listen insecure tls_ca tls_cert tls_key tls_crl ready_file metrics_listen shutdown_grace_s audit_log",
    "server": "model tensor_parallel",
    "aggregator": "state database artifacts ops_listen enroll_authority client_address",
}


def helm(*words: str) -> "subprocess.CompletedProcess[str]":
    beside = Path(sys.executable).parent / "helm"
    found = str(beside) if beside.exists() else shutil.which("helm")
    if found is None:
        pytest.skip("helm is not installed: make gate-deploy fetches it")
    return subprocess.run([found, *words], capture_output=True, text=True, timeout=60, check=False)


def render(*words: str) -> "subprocess.CompletedProcess[str]":
    return helm("template", "fed", str(CHART), "--namespace", "ml", *words)


@cache
def objects(values: str) -> dict[tuple[str, str], Any]:
    """By kind and name."""
    rendered = render("--values", str(CHART / "ci" / f"{values}.yaml"))
    assert rendered.returncode == 0, rendered.stderr
    found = [one for one in yaml.safe_load_all(rendered.stdout) if one]
    return {(one["kind"], one["metadata"]["name"].removeprefix("fed-fednano-")): one for one in found}


def pod(values: str, part: str) -> Any:
    return objects(values)["Deployment", part]["spec"]["template"]["spec"]


def environment(values: str, part: str) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in pod(values, part)["containers"][0]["env"]}


@pytest.mark.parametrize("values", SETS)
@pytest.mark.parametrize("part", SETTINGS)
def test_every_pod_is_confined(values: str, part: str) -> None:
    made = pod(values, part)
    assert made["automountServiceAccountToken"] is False
    assert made["securityContext"]["runAsNonRoot"] is True
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(made)
    (container,) = made["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("values", SETS)
@pytest.mark.parametrize("part", SETTINGS)
def test_every_setting_is_known(values: str, part: str) -> None:
    known = {f"FEDNANO_{name.upper()}" for name in SETTINGS[part].model_fields}
    assert set(environment(values, part)) <= known


@pytest.mark.parametrize("values", SETS)
def test_secrets_are_named_and_never_made(values: str) -> None:
    assert "Secret" not in {kind for kind, _ in objects(values)}
    assert environment("elsewhere", "aggregator")["FEDNANO_DATABASE"] == {
        "secretKeyRef": {"name": "database", "key": "url"}
    }


@pytest.mark.parametrize("part", SETTINGS)
def test_a_pod_without_an_identity_is_not_made(part: str) -> None:
    refused = render("--values", str(CHART / "ci" / "least.yaml"), "--set", f"{part}.tlsSecret=")
    assert f"{part}.tlsSecret: name a Secret" in refused.stderr


def test_one_pod_alone_writes() -> None:
    spec = objects("elsewhere")["Deployment", "aggregator"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert "HorizontalPodAutoscaler" not in {kind for kind, name in objects("gpu") if name == "aggregator"}


def test_servers_are_found_by_their_name_one_by_one() -> None:
    assert objects("least")["Service", "server"]["spec"]["clusterIP"] == "None"
    assert objects("gpu")["Service", "server-external"]["spec"]["type"] == "LoadBalancer"
    assert ("Service", "server-external") not in objects("least")


def test_a_server_that_goes_has_time_to_drain() -> None:
    made = pod("least", "server")
    assert made["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
    assert made["terminationGracePeriodSeconds"] > 5 + float(environment("least", "server")["FEDNANO_SHUTDOWN_GRACE_S"])
    assert objects("least")["PodDisruptionBudget", "server"]["spec"]["maxUnavailable"] == 1


def test_servers_grow_by_a_metric_that_they_have() -> None:
    scaler = objects("gpu")["HorizontalPodAutoscaler", "server"]["spec"]
    metric = scaler["metrics"][0]["pods"]["metric"]["name"]
    assert f'"{metric}"' in (REPOSITORY / "services/server/metrics.py").read_text()
    assert "replicas" not in objects("gpu")["Deployment", "server"]["spec"]


def test_a_model_larger_than_a_gpu_is_spread() -> None:
    made = pod("spread", "server")["containers"][0]
    assert made["command"][:3] == ["python", "-m", "torch.distributed.run"]
    assert made["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert environment("spread", "server")["FEDNANO_TENSOR_PARALLEL"] == "true"
    assert environment("gpu", "server")["FEDNANO_DEVICE"] == "cuda:0"
    refused = render("--values", str(CHART / "ci" / "spread.yaml"), "--set", "server.tensorParallel=2")
    assert "server.tensorParallel" in refused.stderr


def test_health_is_asked_by_the_services_own_certificate() -> None:
    for part in SETTINGS:
        container = pod("least", part)["containers"][0]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["exec"]["command"] == ["python", "-m", "fednano.rpc.probe"]


def test_a_server_reaches_nobody_and_metrics_are_for_monitoring_alone() -> None:
    policy = objects("least")["NetworkPolicy", "server"]["spec"]
    assert policy["egress"] == []
    (metrics,) = [rule for rule in policy["ingress"] if rule["ports"][0]["port"] == "metrics"]
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def test_a_database_that_no_policy_lets_in_reach_is_said_at_once() -> None:
    refused = render(
        "--values", str(CHART / "ci" / "elsewhere.yaml"), "--set-json", "networkPolicy.aggregatorEgress=[]"
    )
    assert "networkPolicy.aggregatorEgress" in refused.stderr


def test_large_numbers_stay_whole() -> None:
    assert environment("gpu", "server")["FEDNANO_GRAPH_MEMORY_BYTES"] == "34359738368"
    assert environment("gpu", "server")["FEDNANO_JOIN_WINDOW_S"] == "0.004"


def test_state_outlives_the_release() -> None:
    for name in ("state", "audit"):
        claim = objects("least")["PersistentVolumeClaim", name]
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@pytest.mark.parametrize("part", SETTINGS)
def test_the_schema_takes_the_settings_that_the_chart_does_not_decide(part: str) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    taken = schema["properties"][part]["properties"]["settings"]["propertyNames"]["enum"]
    decided = set(DECIDED["both"].split()) | set(DECIDED[part].split())
    assert set(taken) == set(SETTINGS[part].model_fields) - decided


def test_every_value_is_in_the_schema_and_a_wrong_one_is_refused() -> None:
    refused = render("--values", str(CHART / "ci" / "least.yaml"), "--set", "server.settings.thread=4")
    assert "thread" in refused.stderr
    assert helm("lint", "--strict", str(CHART), "--values", str(CHART / "ci" / "least.yaml")).returncode == 0


def test_the_charts_version_is_the_projects() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version
    assert re.fullmatch(r"\d+\.\d+\.\d+", chart["version"])
