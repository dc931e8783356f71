"""Logs as events with fields, one line each, JSON where nobody watches. Never a tensor, label, prompt or token."""

import logging
import sys
from typing import cast

import structlog


def configure_logging(service: str, *, level: str = "INFO", json_lines: bool | None = None) -> None:
    """Sends all log events of this process to stderr, with the service's name; call once, in ``__main__``.

    ``json_lines`` defaults to JSON unless stderr is a terminal.
    """
    as_json = not sys.stderr.isatty() if json_lines is None else json_lines
    # Plain traces: a formatter that shows local variables would log tensors and prompts.
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(sort_keys=False)
        if as_json
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if as_json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    _take_in_foreign_logs(renderer, max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


def _take_in_foreign_logs(renderer: structlog.typing.Processor, level: int) -> None:
    """What libraries log by Python's own ``logging``, in the same form."""
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level, force=True)


def get_logger(room: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose events carry the room they come from, such as "server.session"."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(room=room))
