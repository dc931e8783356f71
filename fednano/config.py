"""Settings that every service shares. Each is read once, in ``__main__``, from flags and FEDNANO_* variables.

Order: a flag wins over its environment variable, which wins over the default.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fednano.errors import SettingsInvalid

# OpenTelemetry's own variable: who has a collector has it set for all services.
TRACE_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Security(BaseModel):
    """How one end of a connection proves itself: certificate files, or plaintext where that was asked for."""

    model_config = ConfigDict(frozen=True)

    insecure: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_crl: Path | None = None


class ServiceSettings(BaseSettings):
    """What each service needs to start: where it listens, how it proves itself, how it logs."""

    model_config = SettingsConfigDict(
        env_prefix="FEDNANO_", cli_kebab_case=True, cli_implicit_flags=True, frozen=True, extra="ignore"
    )

    listen: str = Field("127.0.0.1:0", description="host:port to listen on; port 0 takes a free one")
    insecure: bool = Field(False, description="plaintext: no certificates, no encryption, for one trusted machine only")
    tls_ca: Path | None = Field(None, description="PEM file of the CA that both ends trust")
    tls_cert: Path | None = Field(None, description="PEM file of this service's certificate")
    tls_key: Path | None = Field(None, description="PEM file of this service's private key")
    tls_crl: Path | None = Field(
        None, description="PEM file of the CA's list of revoked certificates, read as it changes"
    )
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="least level that is logged")
    ready_file: Path | None = Field(None, description="file to write the bound host:port to, once serving")
    metrics_listen: str = Field(
        "", description="host:port for Prometheus to scrape, off when empty; nobody is authenticated: prefer loopback"
    )
    trace_endpoint: str = Field(
        default_factory=lambda: os.environ.get(TRACE_VARIABLE, ""),
        description="URL of an OpenTelemetry collector, such as http://127.0.0.1:4317, for traces; off when empty; "
        f"{TRACE_VARIABLE} does too; needs the extra tracing",
    )
    audit_log: Path | None = Field(
        None, description="file that keeps, in a chain, what operators did and which calls were refused; off if unset"
    )
    calls_per_s: float = Field(500.0, gt=0, description="calls a second, over time, that one peer may make")
    call_burst: int = Field(2000, ge=1, description="calls that one peer may make in an instant")
    calls_at_once: int = Field(256, ge=1, description="calls that one peer may have open, streams included")
    shutdown_grace_s: float = Field(5.0, ge=0, description="seconds that calls under way get after SIGTERM")

    @model_validator(mode="after")
    def _secure_or_said_otherwise(self) -> Self:
        if not self.insecure and None in (self.tls_ca, self.tls_cert, self.tls_key):
            raise ValueError(
                "give --tls-ca, --tls-cert and --tls-key, or --insecure for plaintext on one trusted machine"
            )
        return self

    @property
    def security(self) -> Security:
        return Security(
            insecure=self.insecure,
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            tls_crl=self.tls_crl,
        )

    def shown(self) -> dict[str, str]:
        """The settings as a log may show them: those that are kept out of ``repr`` may hold a password."""
        fields = type(self).model_fields
        return {
            name: (str(value) if fields[name].repr else "set" if value else "")
            for name, value in self.model_dump().items()
        }


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def read_settings(settings_class: type[SettingsT], arguments: Sequence[str] | None = None) -> SettingsT:
    """Settings from ``arguments`` (the process's own by default) and the environment.

    Raises SettingsInvalid with one line for each wrong setting, named as its flag.
    """
    try:
        return settings_class(_cli_parse_args=list(sys.argv[1:] if arguments is None else arguments))
    except ValidationError as error:
        raise SettingsInvalid("; ".join(_explain(fault["loc"], fault["msg"]) for fault in error.errors())) from None


def _explain(location: tuple[int | str, ...], message: str) -> str:
    flag = "-".join(str(part) for part in location).replace("_", "-")
    # What pydantic puts before the words of a check of ours.
    words = message.removeprefix("Value error, ")
    return f"--{flag}: {words}" if flag else words
