"""The command line starts where no extra is installed, as in the aggregator's image: operators need none of them."""

import subprocess
import sys

EXTRAS = (
    "PIL",
    "alembic",
    "datasets",
    "matplotlib",
    "numba",
    "sqlalchemy",
    "tensorboardX",
    "tokenizers",
    "torch",
    "transformers",
)
PROGRAM = (
    "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:])); from fednano.cli.app import app; app(['--help'])"
)


def test_help_is_there_without_any_extra() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *EXTRAS], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "adapter" in ended.stdout
