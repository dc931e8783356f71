"""What a round costs without any learning: ours, Flower and a bare gRPC loop, side by side.

5 clients; 4.2 MB down and 8.4 MB up for each, every round. Contestants take turns, in plaintext and over TLS, so that
a busy machine disturbs all of them alike. CPU and memory are those of whole process trees.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import round_floor, round_flower, round_ours
from benchmarks.certificates import Certificates, make_certificates
from benchmarks.round_arena import Arena, ContestantFailed, Figures
from benchmarks.round_report import Standing, as_json, conditions_line, print_table


@dataclass(frozen=True, kw_only=True)
class Contestant:
    name: str
    # What is left of a run's rounds and updates after the server was killed.
    keeps: str
    tls: str
    absent: Callable[[], str]
    start: Callable[[Arena], None]
    # Whether it takes part where nobody says who should.
    is_usual: bool = True


FLOOR = "floor"
CONTESTANTS = (
    Contestant(
        name="ours",
        keeps="all: updates synced and recorded before they are acknowledged",
        tls="mTLS",
        absent=round_ours.absent,
        start=round_ours.start,
    ),
    Contestant(name="flower", keeps="nothing", tls="TLS", absent=round_flower.absent, start=round_flower.start_current),
    Contestant(
        name="flower-database",
        keeps="its own tables, in SQLite",
        tls="TLS",
        absent=round_flower.absent,
        start=round_flower.start_with_database,
        is_usual=False,
    ),
    Contestant(
        name="flower-legacy", keeps="nothing", tls="TLS", absent=round_flower.absent, start=round_flower.start_legacy
    ),
    Contestant(name=FLOOR, keeps="nothing", tls="mTLS", absent=round_floor.absent, start=round_floor.start),
)
Runs = dict[tuple[str, str], list[Figures]]


def race(contestants: Sequence[Contestant], *, rounds: int, clients: int, repeats: int, secure: Sequence[bool]) -> Runs:
    """The figures of each contestant and transport, a list with one for each repeat that did not fail."""
    runs: Runs = {}
    with tempfile.TemporaryDirectory(prefix="fednano-race-") as name:
        folder = Path(name)
        given = make_certificates(folder / "certificates") if any(secure) else None
        for repeat in range(repeats):
            for is_secure in secure:
                for contestant in contestants:
                    transport = contestant.tls if is_secure else "plaintext"
                    place = folder / f"{contestant.name}-{transport}-{repeat}"
                    which = f"{contestant.name}, {transport}, {repeat + 1} of {repeats}"
                    try:
                        figures = _measure(contestant, place, rounds, clients, given if is_secure else None)
                    except ContestantFailed as failure:
                        _say(f"{which}: failed: {failure}")
                        continue
                    runs.setdefault((contestant.name, transport), []).append(figures)
                    _say(f"{which}: {figures.seconds:.2f} s a round")
    return runs


def _measure(contestant: Contestant, folder: Path, rounds: int, clients: int, given: Certificates | None) -> Figures:
    with Arena(folder=folder, rounds=rounds, clients=clients, certificates=given) as arena:
        contestant.start(arena)
        return arena.measure()


def _standings(contestants: Sequence[Contestant], runs: Runs) -> list[Standing]:
    keeps = {contestant.name: contestant.keeps for contestant in contestants}
    return [
        Standing(contestant=name, transport=transport, keeps=keeps[name], repeats=figures)
        for (name, transport), figures in sorted(runs.items(), key=lambda item: item[0][1] != "plaintext")
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--rounds", type=int, default=10, help="rounds that count; one more before, one after")
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    usual = [one.name for one in CONTESTANTS if one.is_usual]
    everyone = ", ".join(one.name for one in CONTESTANTS)
    parser.add_argument("--only", type=_names, default=usual, help=f"with commas between them: {everyone}")
    parser.add_argument("--transport", choices=("both", "plaintext", "tls"), default="both")
    parser.add_argument("--setup-flower", action="store_true", help="install Flower into its own environment, and end")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = set(names) - {one.name for one in CONTESTANTS}
    if unknown:
        raise argparse.ArgumentTypeError(f"nobody is called {', '.join(sorted(unknown))}")
    return names


def main() -> int:
    given = _arguments()
    if given.setup_flower:
        round_flower.set_up()
        return 0
    wanted = [one for one in CONTESTANTS if one.name in given.only]
    absent = {one.name: reason for one in wanted if (reason := one.absent())}
    for name, reason in absent.items():
        _say(f"without {name}: {reason}")
    secure = {"both": (False, True), "plaintext": (False,), "tls": (True,)}[given.transport]
    contestants = [one for one in wanted if one.name not in absent]
    runs = race(contestants, rounds=given.rounds, clients=given.clients, repeats=given.repeats, secure=secure)
    standings = _standings(contestants, runs)
    if given.json:
        print(as_json(standings, absent))
    else:
        print_table(standings, FLOOR)
        print(conditions_line())
    wanted_count = len(contestants) * len(secure) * given.repeats
    return 0 if sum(len(figures) for figures in runs.values()) == wanted_count > 0 else 1


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
