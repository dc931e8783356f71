"""The table of roles in the docs is the one in the code."""

import re
from pathlib import Path

from fednano.rpc.policy import ANYONE, POLICY, Rule
from fednano.security.identity import Role

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/security.md"
COLUMNS = (*Role, ANYONE)


def test_the_documented_table_is_the_policy() -> None:
    text = DOCUMENT.read_text()
    header = f"| method | {' | '.join(COLUMNS)} | audited | most bytes |"
    assert header in text
    documented = dict(re.findall(r"^\| `(\w+\.\w+)` \| (.+) \|$", text.partition(header)[2], re.MULTILINE))
    assert documented == {short_name(path): row(rule) for path, rule in POLICY.items()}


def short_name(path: str) -> str:
    service, method = path.removeprefix("/").split("/")
    return f"{service.rpartition('.')[2]}.{method}"


def row(rule: Rule) -> str:
    cells = [cell(rule, role) for role in COLUMNS]
    return " | ".join([*cells, "yes" if rule.is_audited else "-", size(rule.max_bytes)])


def cell(rule: Rule, role: str) -> str:
    if role not in rule.roles:
        return "-"
    return "itself" if rule.own and role == Role.CLIENT else "yes"


def size(count: int) -> str:
    return f"{count >> 10} KiB" if count < 1 << 20 else f"{count >> 20} MiB"
