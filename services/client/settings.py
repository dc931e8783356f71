"""The client's settings."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from fednano.names import ID
from services.client.edge_settings import EdgeSettings


class ClientSettings(EdgeSettings):
    """Who the client is, what it holds, whom it talks to, and how patient it is."""

    client_id: str = Field(pattern=f"^{ID}$", description="last part of the client's name, kept across restarts")
    display_name: str = Field("", description="what people call the client; its id when empty")
    run: str = Field("", description="run to join, demo or runs/demo; empty joins the newest that has not ended")
    examples: Path = Field(description="folder of examples, in any layout of docs/data.md")
    pooled: bool = Field(
        False,
        description="the folder of examples has one folder for each client in it: this client trains on all of them and"
        " measures each one's test split apart (for method centralized)",
    )
    evaluate_on: Literal["test", "val"] = Field(
        "test", description="the split that accuracy is measured on; val for runs that settings are chosen by"
    )
    model: str = Field("nano", description="name of a preset, or a model's folder with edge/ in it")
    server: str = Field(
        description="host:port of the LLM server; commas between several that serve the same model: where one is lost,"
        " the next does the step again"
    )
    aggregator: str = Field(description="host:port of the aggregator")
    state: Path | None = Field(
        None,
        description="folder where the training under way is kept, for a client that is started again; without it a"
        " killed client trains its round anew",
    )
    checkpoint_every_steps: int = Field(20, ge=1, description="local steps from one saving to the next, with --state")
    wire_encoding: Literal["raw", "bfloat16", "float16", "int8"] = Field(
        "raw",
        description="how tensors travel to the LLM server and back: raw keeps every bit, the others round to send"
        " half of the bytes or, with int8, a quarter",
    )
    loss_on_server: bool = Field(
        False,
        description="send the labels to the LLM server and get loss and gradient back in one round trip; gives up that"
        " the labels stay here, and works only with a server started with --allow-loss-on-server",
    )
    threads: int = Field(1, ge=1, description="threads that torch computes with")
    aggregator_wait_s: float = Field(600.0, gt=0, description="seconds to keep trying a lost aggregator")
    server_wait_s: float = Field(600.0, gt=0, description="seconds to keep trying a lost LLM server")
    progress_timeout_s: float = Field(310.0, gt=0, description="seconds that the LLM server may take for one answer")

    @field_validator("run")
    @classmethod
    def _whole_name(cls, text: str) -> str:
        """As the contract has it. Wrong here it ends the process at once, not after the examples were read."""
        name = text if not text or text.startswith("runs/") else f"runs/{text}"
        if name and re.fullmatch(f"runs/{ID}", name) is None:
            raise ValueError(f"{text!r} is no run's name, such as demo or runs/demo")
        return name

    @property
    def feature_folder(self) -> Path | None:
        """Where features are kept on disk, if anywhere."""
        return self.feature_cache or (self.state / "features" / self.client_id if self.state else None)
