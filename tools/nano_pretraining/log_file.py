"""A log on the screen and in a file."""

from datetime import UTC, datetime
from pathlib import Path

from nano_pretraining.training import Log


def log_to(path: Path) -> Log:
    def log(line: str) -> None:
        stamped = f"{datetime.now(UTC):%H:%M:%S} {line}"
        print(stamped, flush=True)
        with path.open("a") as file:
            file.write(stamped + "\n")

    return log
