"""A federation of containers: docker compose for what people type, the engine's own API for looking and for harm."""

import csv
import io
import json
import os
import re
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container

REPOSITORY = Path(__file__).resolve().parents[2]
POLL_S = 0.5
# A machine with two busy cores takes half a minute for what others do in four seconds.
ROUND_TIMEOUT_S = 240.0
TAG = "e2e"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a command ended."""

    code: int
    text: str


class Federation:
    """One compose project. Nothing of it is left when ``remove`` has run."""

    def __init__(self, project: str, environment: Mapping[str, str]) -> None:
        self.project = project
        # No setting of the person who runs the tests gets in, other than where torch comes from.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEDNANO_", "COMPOSE_"))}
        torch_index = os.environ.get("FEDNANO_TORCH_INDEX", "")
        self.environment = {**kept, "FEDNANO_TORCH_INDEX": torch_index, "FEDNANO_VERSION": TAG, **environment}
        self.engine = docker.from_env()
        # What the service `run` said of the first run.
        self.first_watch = ""

    def compose(
        self, *arguments: str, timeout_s: float = 120.0, environment: Mapping[str, str] | None = None
    ) -> Answer:
        """``docker compose arguments`` in the repository, with a settings file of nobody's."""
        ended = subprocess.run(
            ["docker", "compose", "--project-name", self.project, "--env-file", os.devnull, *arguments],
            cwd=REPOSITORY,
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Answer(code=ended.returncode, text=ended.stdout)

    def must(self, *arguments: str, timeout_s: float = 120.0, environment: Mapping[str, str] | None = None) -> str:
        answer = self.compose(*arguments, timeout_s=timeout_s, environment=environment)
        assert answer.code == 0, answer.text[-4000:]
        return answer.text

    def up(self, environment: Mapping[str, str] | None = None, *, clients: int = 2) -> None:
        self.must("up", "--detach", "--no-build", "--scale", f"client={clients}", environment=environment)

    def down(self) -> None:
        """The containers go, the volumes stay."""
        self.must("down", "--timeout", "20")

    def remove(self) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "3")

    def operator(self, *arguments: str) -> Answer:
        """`fednano arguments` as the federation's operator."""
        return self.compose("run", "--rm", "--no-deps", "-T", "fednano", *arguments)

    def json(self, *arguments: str) -> dict[str, Any]:
        """What `fednano arguments --json` prints."""
        answer = self.operator(*arguments, "--json")
        assert answer.code == 0, answer.text
        found: dict[str, Any] = json.loads(answer.text[answer.text.index("{") :])
        return found

    def container(self, service: str, number: int = 1) -> Container:
        """The service's container as it is now."""
        labels = {"project": self.project, "service": service, "container-number": str(number)}
        wanted = [f"com.docker.compose.{name}={value}" for name, value in labels.items()]
        (found,) = [
            one
            for one in self.engine.containers.list(all=True, filters={"label": wanted})
            if one.labels["com.docker.compose.oneoff"] == "False"
        ]
        return found

    def containers(self) -> Sequence[Container]:
        return self.engine.containers.list(all=True, filters={"label": f"com.docker.compose.project={self.project}"})

    def run_in(self, service: str, *command: str, number: int = 1) -> Answer:
        """A command in a container that runs."""
        code, output = self.container(service, number).exec_run(list(command))
        return Answer(code=code, text=output.decode())

    def python_in(self, service: str, program: str, *arguments: str, number: int = 1) -> Answer:
        return self.run_in(service, "python", "-c", program, *arguments, number=number)

    def logs(self, service: str | None = None) -> str:
        return self.must("logs", "--no-color", "--no-log-prefix", *([service] if service else []))

    def rounds(self) -> list[int]:
        """The rounds that have succeeded, as the service `run` has shown them since it was started."""
        shown = self.container("run").logs().decode()
        return [int(number) for number in re.findall(r"^round (\d+) succeeded", shown, re.MULTILINE)]

    def wait_for_round(self, number: int, timeout_s: float = ROUND_TIMEOUT_S) -> None:
        self._wait(lambda: number in self.rounds(), f"round {number}", timeout_s)

    def wait_for_more_rounds(self, count: int = 1) -> None:
        """Until so many more rounds have succeeded than now."""
        self.wait_for_round(max(self.rounds(), default=-1) + count)

    def wait_for_end(self, timeout_s: float) -> str:
        """Until the service `run` has shown its run to the end; what it said."""
        run = self.container("run")
        self._wait(lambda: self.container("run").status == "exited", "the end of the run", timeout_s)
        text = run.logs().decode()
        assert run.wait()["StatusCode"] == 0, text[-3000:]
        return text

    def wait_until(self, service: str, *, healthy: bool, timeout_s: float = 90.0, number: int = 1) -> None:
        wanted = "healthy" if healthy else "unhealthy"

        def is_so() -> bool:
            state = self.container(service, number).attrs["State"]
            return bool(state["Running"] and state["Health"]["Status"] == wanted)

        self._wait(is_so, f"{service} to be {wanted}", timeout_s)

    def accuracies(self) -> list[float]:
        """The run's accuracy after each round that was evaluated, from the file that the service `run` left."""
        rows = csv.DictReader(io.StringIO(self.file("run", "/results/history.csv").decode()))
        means = [row for row in rows if row["key"] == "test/accuracy" and not row["client"]]
        found = {int(row["round"]): float(row["value"]) for row in means}
        return [found[number] for number in sorted(found)]

    def file(self, service: str, path: str) -> bytes:
        """A file of a container, also of one that has ended."""
        parts, _ = self.container(service).get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
            member = archive.extractfile(archive.getmembers()[0])
            assert member is not None
            return member.read()

    def _wait(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout_s:g} s for {what}:\n{self.logs()[-6000:]}")
            time.sleep(POLL_S)
