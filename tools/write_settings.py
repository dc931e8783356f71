"""python -m tools.write_settings: writes docs/settings.md and the names that the chart takes, from the code.

tests/contract/test_settings_table.py holds what is committed against this.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from fednano.config import ServiceSettings
from services.aggregator.settings import AggregatorSettings
from services.client.settings import ClientSettings
from services.client.slot import SlotSettings
from services.server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "settings.md"
CHART_SCHEMA = ROOT / "deploy" / "helm" / "fednano" / "values.schema.json"
HEAD = """# Settings

Made by `python -m tools.write_settings` from the classes that read them; a test compares. Each is a flag, as here, and
a variable: `--graph-memory-bytes` is `FEDNANO_GRAPH_MEMORY_BYTES` (of a slot `FEDNANO_SLOT_...`). A flag wins over its
variable, that over the default. A wrong one ends the process at once, with exit code 2 and one line that names it.
Files and folders are relative to where the process starts.

Beside these: `OTEL_*` (`docs/operations.md`, Traces), `PGPASSWORD` and PostgreSQL's other variables, and for outgoing
calls `grpc_proxy`, `https_proxy`, `http_proxy`, `no_grpc_proxy`, `no_proxy`, in lower case (`docs/deployment.md`).
"""
SECTIONS: Mapping[str, tuple[type[BaseSettings], type[BaseSettings] | None]] = {
    "Every service": (ServiceSettings, None),
    "The LLM server, `python -m services.server`": (ServerSettings, ServiceSettings),
    "The aggregator, `python -m services.aggregator`": (AggregatorSettings, ServiceSettings),
    "The client, `python -m services.client`": (ClientSettings, ServiceSettings),
    "A client in a slot, `python -m services.client.slot`": (SlotSettings, None),
}
UNITS = {
    "_per_s": "calls/s",
    "_s": "seconds",
    "_days": "days",
    "_bytes": "bytes",
    "_tokens": "tokens",
    "_steps": "steps",
}
# What the chart itself decides, and therefore takes no values for.
DECIDED = {
    None: "listen insecure tls_ca tls_cert tls_key tls_crl ready_file metrics_listen shutdown_grace_s audit_log",
    "server": "model tensor_parallel",
    "aggregator": "state database artifacts ops_listen enroll_authority client_address",
}


def main() -> int:
    DOCUMENT.write_text(document())
    CHART_SCHEMA.write_text(chart_schema())
    return 0


def document() -> str:
    return HEAD + "".join(f"\n## {title}\n\n{table(*classes)}" for title, classes in SECTIONS.items())


def table(settings: type[BaseSettings], beside: type[BaseSettings] | None) -> str:
    """The settings of a class that the other one has not."""
    shared = beside.model_fields if beside else {}
    rows = [row(name, field) for name, field in settings.model_fields.items() if name not in shared]
    return "| setting | default | unit | may be | meaning |\n|---|---|---|---|---|\n" + "".join(rows)


def row(name: str, field: FieldInfo) -> str:
    unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
    cells = (f"`--{name.replace('_', '-')}`", default(field), unit, "; ".join(bounds(field)), field.description or "")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = "" if field.default_factory else field.default
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    return "" if value is None or value == "" else f"`{value}`"


def bounds(field: FieldInfo) -> Iterator[str]:
    words = [word for part in _parts(field.annotation) if get_origin(part) is Literal for word in get_args(part)]
    if words:
        yield ", ".join(f"`{word}`" for word in words)
    for bound in field.metadata:
        match bound:
            case Ge(ge=least):
                yield f"≥ {least}"
            case Gt(gt=less):
                yield f"> {less}"
            case Le(le=most):
                yield f"≤ {most}"
            case _ if pattern := getattr(bound, "pattern", None):
                yield f"`{pattern}`"


def _parts(annotation: Any) -> Iterator[Any]:
    """Of a type, those that it is made of."""
    yield annotation
    if get_origin(annotation) in (Union, UnionType, tuple):
        for part in get_args(annotation):
            if part not in (NoneType, Ellipsis):
                yield from _parts(part)


def chart_schema() -> str:
    schema = json.loads(CHART_SCHEMA.read_text())
    for part, settings in (("server", ServerSettings), ("aggregator", AggregatorSettings)):
        taken = set(settings.model_fields) - set(DECIDED[None].split()) - set(DECIDED[part].split())
        schema["properties"][part]["properties"]["settings"]["propertyNames"]["enum"] = sorted(taken)
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    sys.exit(main())
