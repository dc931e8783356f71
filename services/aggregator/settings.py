"""The aggregator's settings."""

from pathlib import Path

from pydantic import Field

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
    lease_s: float = Field(15.0, gt=0, description="seconds without a heartbeat after which a client counts as lost")
    poll_s: float = Field(20.0, gt=0, le=300, description="longest seconds that PollTask waits for work")
