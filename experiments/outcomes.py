"""What came of a cell: its run's report, in a file of its own. A cell with a file is not run again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.cells import Cell
from fednano.errors import SettingsInvalid


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``report`` has the fields of a demo's report.json; ``commit`` is what the cell was run with, "" if unknown.

    ``simulated``: in one process and not on the services, so that nothing was sent and no byte counted.
    """

    cell: Cell
    report: Mapping[str, Any]
    commit: str
    simulated: bool = False

    @property
    def accuracy(self) -> float:
        """The mean over clients, each on its own examples."""
        return float(self.report["accuracy"]["after"])

    @property
    def untrained(self) -> float:
        """With the initial adapter, which changes nothing."""
        return float(self.report["accuracy"]["before"])

    @property
    def per_client(self) -> dict[str, float]:
        return {name: float(one["after"]) for name, one in self.report["accuracy"]["per_client"].items()}

    @property
    def sent_bytes(self) -> int:
        return sum(self.report["bytes"].values())

    @property
    def adapter_sha256(self) -> str:
        return str(self.report["adapter_sha256"])


def save_outcome(folder: Path, outcome: Outcome) -> None:
    """Whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{outcome.cell.name}.json"
    draft = path.with_suffix(".draft")
    written = asdict(outcome)
    if not outcome.simulated:
        del written["simulated"]
    draft.write_text(json.dumps(written, indent=1) + "\n")
    draft.replace(path)


def load_outcome(folder: Path, cell: Cell) -> Outcome | None:
    """None where the cell has not been run. Raises SettingsInvalid for a file that is not this cell's."""
    path = folder / f"{cell.name}.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        outcome = Outcome(
            cell=_cell(found["cell"]),
            report=found["report"],
            commit=found["commit"],
            simulated=found.get("simulated", False),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsInvalid(f"{path} is no cell of an experiment ({error}): remove it to run it again") from None
    if outcome.cell != cell:
        raise SettingsInvalid(f"{path} is of other settings than its name says: remove it to run it again")
    return outcome


def _cell(fields: dict[str, Any]) -> Cell:
    return Cell(**{**fields, "modalities": tuple(fields["modalities"])})
