"""The aggregator's settings."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from fednano.config import ServiceSettings


class AggregatorSettings(ServiceSettings):
    """Where the aggregator keeps its state, and how patient it is."""

    state: Path = Field(description="folder of the database, the artifacts and uploads under way; created where absent")
    database: str = Field(
        "",
        repr=False,
        description="URL of the database, sqlite:////path or postgresql+psycopg://user@host/name; by default a file in "
        "the state folder. Give a password by FEDNANO_DATABASE or a PostgreSQL password file, not on the command line",
    )
    artifacts: str = Field(
        "",
        repr=False,
        description="URL of the folder of artifacts, such as file:///path or s3://bucket/folder; by default in the "
        "state folder",
    )
    keep_update_rounds: int = Field(
        10,
        ge=0,
        description="newest rounds of a run whose clients' updates are kept: older ones, which nothing reads any more, "
        "are deleted; global adapters, digests and metrics stay. 0 keeps all",
    )
    lease_s: float = Field(15.0, gt=0, description="seconds without a heartbeat after which a client counts as lost")
    poll_s: float = Field(20.0, gt=0, le=300, description="longest seconds that PollTask waits for work")
    ops_listen: str = Field(
        "",
        description="second host:port, for callers without a certificate: operators with bearer tokens, and clients "
        "that enrol; TLS, off when empty",
    )
    enroll_authority: Path | None = Field(
        None, description="folder of the authority that signs new clients' certificates, as `fednano certs init` makes"
    )
    enroll_days: float = Field(90.0, gt=0, le=3650, description="days that an enrolled client's certificate is good")
    client_address: str = Field(
        "", description="host:port that enrolled clients call; by default the host they enrolled at and --listen's port"
    )
    oidc_issuer: str = Field("", description="issuer of operators' bearer tokens; without it none is taken")
    oidc_audience: str = Field("fednano", description="audience that a bearer token must be for")
    oidc_jwks: str = Field(
        "", description="file or https URL of the issuer's keys; by default found by the issuer's OpenID configuration"
    )
    oidc_role_claim: str = Field("fednano_role", description="claim of a bearer token with operator or viewer in it")

    @model_validator(mode="after")
    def _ways_in_fit(self) -> Self:
        if self.insecure and (self.ops_listen or self.oidc_issuer or self.enroll_authority):
            raise ValueError(
                "--ops-listen, --oidc-issuer and --enroll-authority need certificates: leave --insecure out"
            )
        if self.oidc_issuer and not self.ops_listen:
            raise ValueError("--oidc-issuer needs --ops-listen: on the other address every caller has a certificate")
        if self.enroll_authority and not (self.ops_listen and (self.client_address or not self.listen.endswith(":0"))):
            raise ValueError("--enroll-authority needs --ops-listen, and --client-address or a port in --listen")
        return self

    @property
    def called_address(self) -> str:
        """Where clients call, as EnrollResponse.aggregator says it."""
        return self.client_address or f":{self.listen.rpartition(':')[2]}"
