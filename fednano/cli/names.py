"""Resource names as people type them: ``demo`` is as good as ``runs/demo``."""

from fednano.names import ClientName, RoundName, RunName


def run_name(text: str) -> RunName:
    """``demo`` or ``runs/demo``; FieldInvalid for anything else."""
    return RunName.parse(text if text.startswith("runs/") else f"runs/{text}", "RUN")


def round_name(run: str, number: int | None) -> RoundName:
    """A run and a number, or the round's whole name; FieldInvalid for anything else."""
    if number is None:
        return RoundName.parse(run if run.startswith("runs/") else f"runs/{run}", "ROUND")
    return RoundName(run=run_name(run).run, number=number)


def client_name(run: str, client: str) -> ClientName:
    """A run and a client's id, or the client's whole name; FieldInvalid for anything else."""
    if not client:
        return ClientName.parse(run if run.startswith("runs/") else f"runs/{run}", "CLIENT")
    return ClientName.parse(f"{run_name(run)}/clients/{client.rpartition('/')[2]}", "CLIENT")
