"""python -m services.server: serves the frozen language half of one model."""

import logging
import sys

import torch
from transformers.utils import logging as transformers_logging

from fednano.config import read_settings
from fednano.errors import LocalError, PeerUnavailable
from fednano.telemetry import configure_logging
from fednano.tracing import tracing
from fednano.wire.heap import keep_freed_memory
from services.server.settings import ServerSettings


def main() -> int:
    """0 after a signal, 2 with one line on stderr for what the person who started it can set right."""
    keep_freed_memory()
    transformers_logging.disable_progress_bar()
    try:
        settings = read_settings(ServerSettings)
        configure_logging("server", level=settings.log_level)
        _quieten_torch()
        # Not before: what transformers imports has things to say, which belong into the log.
        from services.server.process import run

        with tracing("fednano.server", settings.trace_endpoint):
            run(settings)
    except (LocalError, PeerUnavailable) as error:
        sys.stderr.write(f"services.server: {error.message}\n")
        return 2
    return 0


def _quieten_torch() -> None:
    """transformers loads torchao where it is installed, and both warn then of what nobody here can change."""
    for name in (torch.utils._pytree.__name__, "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
