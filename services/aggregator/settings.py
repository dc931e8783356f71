"""The aggregator's settings."""

from pathlib import Path

from pydantic import Field

from fednano.config import ServiceSettings


class AggregatorSettings(ServiceSettings):
    """Where the aggregator keeps its state, and how patient it is."""

    state: Path = Field(description="folder of the database and the artifacts; created where absent")
    lease_s: float = Field(15.0, gt=0, description="seconds without a heartbeat after which a client counts as lost")
    poll_s: float = Field(20.0, gt=0, le=300, description="longest seconds that PollTask waits for work")
