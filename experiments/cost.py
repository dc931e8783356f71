"""The cost of a run: the paper's accounting (its Table 1), the whole one, and what was measured on sockets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from experiments.markdown import markdown_table
from experiments.outcomes import Outcome
from fednano.costs.ledger import Workload, compute, held, paper_accounting, traffic
from fednano.costs.shapes import SHAPES

SHAPE = "llava-1.5-7b"
WORK = Workload(
    rank=64,
    batch_size=8,
    text_tokens=64,
    answer_tokens=4,
    local_steps=100,
    rounds=10,
    wire_bytes=2,
    fisher_examples=800,
)
KINDS = ("adapters", "fisher", "gram", "activations", "gradients")
SOCKETS = ("server", "aggregator")


def cost_lines(outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Markdown: of each arm its first seed's run, for bytes hardly differ by seed."""
    return [*_paper_lines(), "", "## Measured on this machine", "", *_measured_lines(outcomes)]


def _paper_lines() -> list[str]:
    shape = SHAPES[SHAPE]
    paper, spent = paper_accounting(shape, WORK.rank), compute(shape, WORK)
    lines = [f"## {SHAPE}, rank {WORK.rank}, from its shape alone (`fednano params`)", ""]
    counted = [
        ("client, as the paper counts", f"{paper.client_parameters / 1e6:.2f} M = {100 * paper.client_share:.2f} %"),
        ("uploads, as the paper counts", f"{paper.upload_parameters / 1e6:.2f} M = {100 * paper.upload_share:.2f} %"),
    ]
    counted += [
        (f"held: {_words(name)}", f"{count / 1e6:,.2f} M") for name, count in asdict(held(shape, WORK.rank)).items()
    ]
    moved = asdict(traffic(shape, WORK))
    counted += [(f"one client's bytes: {_words(name)}", f"{count / 1e6:,.2f} MB") for name, count in moved.items()]
    counted += [
        ("client's work, a step", f"{spent.client_step / 1e9:,.2f} GFLOP"),
        ("client's encoder, an example, once", f"{spent.client_encoder / 1e9:,.2f} GFLOP"),
        ("server's work, a step", f"{spent.server_step / 1e9:,.2f} GFLOP"),
        ("server's work, Fisher information of a round", f"{spent.server_fisher_round / 1e9:,.2f} GFLOP"),
        ("server passes, a round's training", f"{spent.server_passes_per_round:,}"),
    ]
    return lines + markdown_table(("", "value"), counted)


def _measured_lines(outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    header = ["", *(f"{kind}, MB" for kind in KINDS), "steps", "tensors a step, kB"]
    header += [f"{way} {name}, MB" for name in SOCKETS for way in ("to", "from")]
    rows = [(label, *_measured(each[0].report)) for label, each in outcomes.items()]
    lines = ["All clients and rounds of one run, evaluations included; a step is two passes on the LLM server.", ""]
    lines += [
        "The last four columns are what a relay in front of the services counted: framing, health checks and all."
    ]
    return [*lines, "", *markdown_table(header, rows)]


def _measured(report: Mapping[str, Any]) -> list[str]:
    moved, ledger = report["bytes"], report["ledger"]
    sockets = [ledger["socket"][name][way] for name in SOCKETS for way in ("up", "down")]
    return [
        *(f"{moved[kind] / 1e6:.2f}" for kind in KINDS),
        f"{ledger['steps']:,}",
        f"{ledger['train_tensor_bytes_per_step'] / 1e3:.1f}",
        *(f"{count / 1e6:.2f}" for count in sockets),
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")
