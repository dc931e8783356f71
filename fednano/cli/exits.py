"""How a command ends: with an exit code, and where it failed with one message on stderr and no trace.

0 done · 1 failed · 2 wrong usage · 3 no such run, round, client or adapter · 4 the peer does not answer · 130 Ctrl-C
"""

import errno
from collections.abc import Callable
from types import MappingProxyType
from typing import TypeVar

import typer

from fednano.errors import (
    ExamplesInvalid,
    FednanoError,
    FieldInvalid,
    ModelInvalid,
    NoProgress,
    PeerUnavailable,
    PeerUntrusted,
    ResourceNotFound,
    SettingsInvalid,
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_UNREACHABLE = 4
EXIT_INTERRUPTED = 130
EXIT_WORDS = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such run, round, client or adapter, "
    "4 the peer does not answer, 130 stopped by Ctrl-C."
)
USAGE = (SettingsInvalid, ModelInvalid, ExamplesInvalid, FieldInvalid)
# A path that was given wrongly; whatever else a system refuses may be well the next time.
WRONG_PATH = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
# What an installation may lack, and the extra that brings it.
EXTRAS = MappingProxyType(
    {
        "matplotlib": "demo",
        "PIL": "demo",
        "gguf": "gguf",
        "tokenizers": "demo",
        "torch": "demo",
        "tensorboardX": "tensorboard",
        "datasets": "parquet",
    }
)
ResultT = TypeVar("ResultT")


def or_exit(work: Callable[[], ResultT], *, interrupted: str) -> ResultT:
    """The result of ``work``, or the exit code and the one message that its failure means."""
    try:
        return work()
    except KeyboardInterrupt:
        typer.echo(interrupted, err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except FednanoError as error:
        typer.echo(f"fednano: {printable(error.message)}", err=True)
        raise typer.Exit(exit_code(error)) from None
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        typer.echo(f"fednano: {error.name} is not installed: pip install 'fednano[{extra}]'", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    except OSError as error:
        # Who reads a pipe no longer wants no words either: Typer ends quietly then.
        if error.errno in (None, errno.EPIPE):
            raise
        # Of a renaming, where it was to go to; none where a write failed.
        path = error.filename2 or error.filename
        typer.echo(f"fednano: {f'{path}: ' if path else ''}{error.strerror}", err=True)
        raise typer.Exit(EXIT_USAGE if isinstance(error, WRONG_PATH) else EXIT_FAILED) from None


def exit_code(error: FednanoError) -> int:
    if isinstance(error, USAGE):
        return EXIT_USAGE
    if isinstance(error, ResourceNotFound):
        return EXIT_NOT_FOUND
    return EXIT_UNREACHABLE if isinstance(error, PeerUnavailable | NoProgress | PeerUntrusted) else EXIT_FAILED


def printable(text: str) -> str:
    """The text without what could steer a terminal: a peer's words are not to be trusted with that."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)
