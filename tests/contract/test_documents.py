"""What README and docs/ tell to type and to open is there: commands, flags, variables, metrics, files, sections."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import dropwhile
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from fednano.cli.app import app
from services.client.slot import SlotSettings
from tools.write_settings import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
PATH = re.compile(r"(?:fednano|services|experiments|tools|benchmarks|tests|docs|deploy|proto)/[\w./-]*\w/?")
# As the pages point at a section: `docs/security.md`, Roles.
SECTION = re.compile(r"`(docs/[\w-]+\.md)`, ([A-Z][\w' ]*\w)")
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")
METRIC = re.compile(
    r"\bfednano_(?:certificate|client|events|merge|round|rpc|server|state|store|updates)_\w+?(?=_sum\b|_count\b|\b)"
)
VARIABLE = re.compile(r"\bFEDNANO_[A-Z][A-Z_]*[A-Z]\b")
COMMAND = get_command(app)
# Flags of pip, torchrun and docker.
FOREIGN_FLAGS = {"--no-deps", "--max-restarts", "--build-arg"}

pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_every_command_of_ours_is_there_with_the_flags_that_it_is_given(page: Path) -> None:
    assert [fault for words in command_lines(page) for fault in faults(words)] == []


def test_every_flag_is_one_of_ours(page: Path) -> None:
    named = {flag for text in inline(page) for flag in re.findall(r"^--[a-z][\w-]*(?![\w*-])", text)}
    assert named - command_flags(COMMAND) - service_flags() - FOREIGN_FLAGS == set()


def test_every_variable_is_read_by_something_of_ours(page: Path) -> None:
    assert set(VARIABLE.findall(page.read_text())) - variables() == set()


def test_every_metric_is_in_the_table(page: Path) -> None:
    table = (ROOT / "docs/metrics.md").read_text()
    assert {name for name in METRIC.findall(page.read_text()) if f"`{name}`" not in table} == set()


def test_every_path_and_every_section_is_there(page: Path) -> None:
    paths = {path for text in inline(page) if PATH.fullmatch(path := text.partition(" ")[0])}
    linked = {page.parent / target for target in LINK.findall(INLINE.sub("", FENCE.sub("", page.read_text())))}
    assert {path for path in {ROOT / path for path in paths} | linked if not path.exists()} == set()
    sections = SECTION.findall(" ".join(page.read_text().split()))
    assert [(path, name) for path, name in sections if not has_section(ROOT / path, name)] == []


def inline(page: Path) -> list[str]:
    return [" ".join(text.split()) for text in INLINE.findall(FENCE.sub("", page.read_text()))]


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of each command line, in a fence or in a sentence, from the command's name on."""
    blocks = [block.replace("\\\n", " ") for block in FENCE.findall(page.read_text())]
    for line in [line for block in blocks for line in block.splitlines()] + inline(page):
        for part in re.split(r"&&|;", line.partition("#")[0]):
            words = list(dropwhile(lambda word: re.match(r"[A-Z_]+=", word), split_words(part)))
            if words:
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def split_words(line: str) -> list[str]:
    """None of what has an open quote: no command line, then."""
    try:
        return shlex.split(line)
    except ValueError:
        return []


def faults(words: list[str]) -> Iterator[str]:
    match words:
        case ["fednano", *rest]:
            yield from faults_of_command(rest)
        case ["docker", "compose", "run", "--rm", "fednano", *rest]:
            yield from faults_of_command(rest)
        case ["python" | "torchrun", *_] if "-m" in words[:-1]:
            module, *rest = words[words.index("-m") + 1 :]
            yield from [] if module == "services.NAME" or find_spec(module) else [f"there is no {module}"]
            if module.startswith("services."):
                yield from unknown_flags(rest, service_flags() | {"--help"}, module)
        case ["make", target] if not re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.M):
            yield f"there is no make {target}"
        case ["pytest", *rest]:
            yield from (f"there is no {path}" for path in rest if PATH.fullmatch(path) and not (ROOT / path).exists())


def faults_of_command(words: list[str]) -> Iterator[str]:
    command, name = COMMAND, "fednano"
    while words and isinstance(command, TyperGroup) and not words[0].startswith("-"):
        word, *words = words
        name = f"{name} {word}"
        if word not in command.commands:
            yield f"there is no {name}"
            return
        command = command.commands[word]
    yield from unknown_flags(words, command_flags(command) | {"--help"}, name)


def unknown_flags(words: list[str], known: set[str], name: str) -> list[str]:
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [f"{name} has no {flag}" for flag in flags if flag not in known]


def command_flags(command: object) -> set[str]:
    if isinstance(command, TyperGroup):
        return {flag for inner in command.commands.values() for flag in command_flags(inner)}
    return {flag for parameter in getattr(command, "params", []) for flag in parameter.opts}


def service_flags() -> set[str]:
    return {f"--{name.replace('_', '-')}" for settings, _ in SECTIONS.values() for name in settings.model_fields}


def variables() -> set[str]:
    """Of settings, of commands, and of the compose files and what they start."""
    settings = {f"FEDNANO_{flag[2:].replace('-', '_').upper()}" for flag in service_flags()}
    slots = {f"FEDNANO_SLOT_{name.upper()}" for name in SlotSettings.model_fields}
    compose = [ROOT / "docker-compose.yml", *(ROOT / "deploy").rglob("*.yml"), *(ROOT / "deploy").rglob("*.sh")]
    sources = [*compose, *(ROOT / "fednano/cli").glob("*.py")]
    return settings | slots | {name for source in sources for name in VARIABLE.findall(source.read_text())}


def has_section(page: Path, name: str) -> bool:
    """A heading, or a paragraph's bold beginning."""
    return bool(re.search(rf"^(?:#+ |\*\*){re.escape(name)}\b", page.read_text(), re.MULTILINE | re.IGNORECASE))
