"""python -m tools.gate_deploy: what can be said of the deployment without an engine or a cluster.

Each check ends in one line: ok, FAILED, or skipped with the reason. Exit status 1 where one failed. Two need what a
machine may lack: an engine's compose, and a vulnerability service, which has to know a package that is known to be bad
before its silence about ours counts.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "helm" / "fednano"
# The least that Chart.yaml asks for and the newest that kubernetes-validate knows.
KUBERNETES_VERSIONS = ("1.27", "1.37")
# They are the Prometheus operator's: no schema of Kubernetes' has them.
FOREIGN_KINDS = ("ServiceMonitor",)
COMPOSE_FILES = (
    ("docker-compose.yml",),
    ("docker-compose.yml", "deploy/compose/gpu.yml"),
    ("docker-compose.yml", "deploy/compose/remote-aggregator.yml"),
    ("deploy/edge/compose.yml",),
    ("deploy/edge/compose.yml", "deploy/edge/gpu.yml"),
)
KNOWN_BAD = "idna==3.4"
LIMIT_S = 600.0


class Skipped(Exception):
    """A check that cannot be made here; says why."""


class Failed(Exception):
    """A check that found something; says what."""


def main() -> int:
    failures = 0
    for name, check in CHECKS.items():
        try:
            print(f"ok       {name}: {check()}", flush=True)
        except Skipped as why:
            print(f"skipped  {name}: {why}", flush=True)
        except Failed as found:
            failures += 1
            print(f"FAILED   {name}\n{found}", flush=True)
    return min(failures, 1)


def dockerfiles() -> str:
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("services/*/Dockerfile"))
    must([tool("hadolint"), *files])
    return f"{len(files)} files"


def chart_is_sound() -> str:
    sets = list(value_sets())
    for values in sets:
        must([tool("helm"), "lint", "--strict", "--quiet", str(CHART), "--values", str(values)])
    return f"{len(sets)} sets of values"


def objects_are_kubernetes() -> str:
    sets = list(value_sets())
    with tempfile.TemporaryDirectory() as folder:
        for values in sets:
            for version in KUBERNETES_VERSIONS:
                _validate(values, version, Path(folder) / f"{values.stem}-{version}.yaml")
    return f"{len(sets)} sets of values, Kubernetes {' and '.join(KUBERNETES_VERSIONS)}"


def _validate(values: Path, version: str, rendered: Path) -> None:
    command = [tool("helm"), "template", "fed", str(CHART), "--values", str(values), "--kube-version", version]
    rendered.write_text(must(command))
    validated = must([tool("kubernetes-validate"), "--strict", "--kubernetes-version", version, str(rendered)])
    # It warns, and is content, where it knows no schema.
    for line in validated.splitlines():
        if line.startswith("WARN") and not any(f"kind {kind} " in line for kind in FOREIGN_KINDS):
            raise Failed(line)


def compose_files() -> str:
    if run([tool("docker"), "compose", "version"]).returncode != 0:
        raise Skipped("docker has no compose here")
    environment = ["env", "FEDNANO_REMOTE_AGGREGATOR=a:1", "FEDNANO_REMOTE_IDENTITIES=."]
    for files in COMPOSE_FILES:
        chosen = [word for name in files for word in ("-f", name)]
        must([*environment, tool("docker"), "compose", *chosen, "config", "--quiet"])
    return f"{len(COMPOSE_FILES)} sets of files"


def vulnerabilities() -> str:
    """Of the pinned versions. A list that is out of reach, or empty, says nothing."""
    with tempfile.TemporaryDirectory() as folder:
        known_bad = Path(folder) / "known-bad.txt"
        known_bad.write_text(f"{KNOWN_BAD}\n")
        if not any(dependency.get("vulns") for dependency in _audit(known_bad)):
            raise Skipped(
                f"no vulnerability service that knows {KNOWN_BAD} answers here; CI with internet must run this"
            )
    audited = [one for one in _audit(ROOT / "constraints.txt") if "skip_reason" not in one]
    found = [
        f"{one['name']} {one['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'no version'}"
        for one in audited
        for fault in one["vulns"]
    ]
    if found:
        raise Failed("\n".join(found))
    return f"{len(audited)} packages"


def _audit(requirements: Path) -> list[dict[str, Any]]:
    ended = run(
        [tool("pip-audit"), "--requirement", str(requirements), "--no-deps", "--disable-pip", "--format", "json"]
    )
    try:
        dependencies: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
    except ValueError:
        raise Skipped(f"pip-audit gets no answer: {ended.stderr.strip().splitlines()[-1]}") from None
    return dependencies


def value_sets() -> Iterator[Path]:
    yield from sorted((CHART / "ci").glob("*.yaml"))


def tool(name: str) -> str:
    """Its path: beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Skipped(f"{name} is not installed")
    return found


def must(command: Sequence[str]) -> str:
    ended = run(command)
    if ended.returncode != 0:
        raise Failed(f"{' '.join(command)}\n{ended.stdout}{ended.stderr}")
    return ended.stdout + ended.stderr


def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603 - the commands are our own
        command, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT, check=False
    )


CHECKS: dict[str, Callable[[], str]] = {
    "Dockerfiles (hadolint)": dockerfiles,
    "chart (helm lint --strict)": chart_is_sound,
    "chart's objects (kubernetes-validate --strict)": objects_are_kubernetes,
    "compose files (docker compose config)": compose_files,
    "vulnerabilities of constraints.txt (pip-audit)": vulnerabilities,
}

if __name__ == "__main__":
    sys.exit(main())
