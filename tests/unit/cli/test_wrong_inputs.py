"""What a person gives wrongly ends in one line that names it, with the exit code that says whose fault it is."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from typer import Exit
from typer.testing import CliRunner

from fednano.cli.app import app
from fednano.cli.exits import or_exit
from fednano.cli.local_federation import start_services
from fednano.cli.processes import Processes
from fednano.errors import ModelInvalid

# Nobody listens on port 1, and none of these gets as far.
CREATE = ("run", "create", "--aggregator", "127.0.0.1:1", "--insecure", "--model", "nano")
TOKEN = ("client", "token", "create", "--aggregator", "127.0.0.1:1", "--tls-ca", "text")
ASK = ("ask", "--question", "which figure?", "--adapter", "adapter.safetensors", "--image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of each kind that is not what was asked for."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "text").write_text("hello\n")
    (folder / "bytes").write_bytes(bytes(range(128, 256)))
    Image.effect_noise((64, 64), 50).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:-500])
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    zeros = {"image.down.weight": np.zeros((2, 128), np.float32), "image.up.weight": np.zeros((128, 2), np.float32)}
    save_file(zeros, folder / "adapter.safetensors")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*CREATE, "--rounds", "99999999999"), "--rounds must be a number of at most 2147483647"),
        ((*CREATE, "--seed", "9" * 20), "--seed must be a number of at most"),
        ((*CREATE, "--round-timeout", "nan"), "--round-timeout must be a number"),
        ((*CREATE, "--join-timeout", "inf"), "--join-timeout must be a number"),
        ((*CREATE, "--fisher-max-examples", "9999999999"), "--fisher-max-examples must be a number"),
        ((*CREATE, "--config", "none.toml"), "--config: none.toml: No such file or directory"),
        (("run", "watch", "demo", "--after-sequence", "9" * 20), "Invalid value for '--after-sequence'"),
        ((*TOKEN, "--ttl", f"{'9' * 20}d"), "is no duration, such as 30m"),
        ((*TOKEN, "--token-file", "bytes"), "--token-file: bytes holds no text"),
        (("demo", "--seed", "9" * 20), "Invalid value for '--seed'"),
        (("client", "doctor", "--env", "bytes"), "--env: bytes holds no text"),
        (("audit", "verify", "none"), "none: No such file or directory"),
        (("certs", "init", "text"), "text: File exists"),
        (("examples", "make", "text/below"), "Not a directory"),
        ((*ASK, "none.png"), "--image: none.png is no picture that can be read"),
        ((*ASK, "cut.png"), "--image: cut.png is no picture that can be read"),
        ((*ASK, "huge.png"), "--image: huge.png is no picture that can be read"),
        ((*ASK, "whole.png", "--insecure", "--server", "nowhere"), "--server: 'nowhere' is no host:port"),
    ],
)
def test_a_wrong_input_is_named_in_a_line(words: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, list(words))
    assert isinstance(done.exception, SystemExit), done.exception
    assert said in " ".join(done.stderr.split())
    assert done.exit_code == 2


def test_an_audit_log_that_is_none_is_told_by_its_line() -> None:
    done = CliRunner().invoke(app, ["audit", "verify", "text"])
    assert (done.exit_code, done.stderr) == (1, "fednano: line 1 is a line that is no entry: b'hello'\n")


def test_a_model_that_is_not_there_ends_a_federation_before_anything_starts(tmp_path: Path) -> None:
    with Processes(tmp_path / "out", print) as processes:
        with pytest.raises(ModelInvalid, match="neither a preset"):
            start_services(processes, model="none", state=tmp_path / "state")
        assert processes.parts == []


def fails(error: OSError) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "fednano: No space left on device\n"),
        (OSError(errno.EIO, "Input/output error", "a"), 1, "fednano: a: Input/output error\n"),
        (OSError(errno.ENOENT, "No such file or directory", "a"), 2, "fednano: a: No such file or directory\n"),
        (OSError(errno.EISDIR, "Is a directory", ".a.part", None, "a"), 2, "fednano: a: Is a directory\n"),
    ],
)
def test_what_the_system_refuses_is_a_line_too(
    error: OSError, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exit) as ended:
        or_exit(fails(error), interrupted="stopped")
    assert (ended.value.exit_code, capsys.readouterr().err) == (code, said)
