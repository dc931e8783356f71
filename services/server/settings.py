"""The LLM server's settings; all bounds that a session is held to are here."""

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from fednano.config import ServiceSettings
from services.server.graph_memory import Checkpointing

Batching = Literal["auto", "exact", "close", "off"]
WireEncoding = Literal["raw", "bfloat16", "float16", "int8"]


class ServerSettings(ServiceSettings):
    """What the LLM server needs beyond what every service needs."""

    model: str = Field("nano", description="a preset's name, or the folder of a model that was cut in two")
    device: str = Field(
        "cpu", description="where the model runs: cpu, cuda:0, or auto, which is CUDA where there is any"
    )
    compute_type: Literal["float32", "float16", "bfloat16"] = Field("float32", description="type the model computes in")
    quantize: Literal["none", "int8", "int4"] = Field(
        "none", description="round the layers' weights when they are loaded; needs the extra quantize"
    )
    tensor_parallel: bool = Field(
        False, description="spread each layer over the processes that torchrun started; with --device auto"
    )
    packed_weights: Literal["auto", "on", "off"] = Field(
        "auto",
        description="whether weights are laid out anew for faster passes on a CPU in float32, which rounds otherwise "
        "than the whole model does; auto does it for decoding alone, where there is room for a copy",
    )
    threads: int = Field(1, ge=1, le=1024, description="CPU threads of a pass")
    max_pass_tokens: int = Field(16_384, ge=1, description="most tokens of a pass, and of one stream's decoding caches")
    batching: Batching = Field(
        "auto",
        description="whether clients share passes: exact where nobody's bits change by it, which is tried at start; "
        "close also where they do, by rounding; auto is exact on a CPU and close elsewhere",
    )
    max_joined_tokens: int | None = Field(
        None, ge=1, description="most tokens of a pass that several share; if unset 1024 on a CPU, else 8192"
    )
    join_window_s: float = Field(
        0.002, ge=0, le=1, description="seconds a pass may wait for more members while other sessions are open"
    )
    graph_memory_bytes: int | None = Field(
        None,
        ge=0,
        description="most bytes of graphs that await their backward pass; two fifths of the free memory if unset",
    )
    activation_checkpointing: Checkpointing = Field(
        "auto",
        description="whether a graph may keep only each layer's inputs, whose backward pass takes a forward pass more: "
        "auto does so where the whole graph has no room beside the others",
    )
    input_memory_bytes: int | None = Field(
        None, ge=0, description="most bytes of clients' tensors taken in; an eighth of the free host memory if unset"
    )
    wire_encodings: Annotated[tuple[WireEncoding, ...], NoDecode] = Field(
        ("raw", "bfloat16", "float16", "int8"),
        min_length=1,
        description="how tensors may travel, commas between; a session that asks for another one is refused",
    )
    allow_loss_on_server: bool = Field(
        False,
        description="take the labels of clients that ask for it, and answer with loss and gradient in one round trip: "
        "those clients give up that nobody else knows their labels",
    )
    max_pending_steps: int = Field(4, ge=1, description="most forward passes of a session that await their backward")
    max_queued_passes: int = Field(64, ge=1, description="most requests, over all sessions, that wait for the model")
    max_sessions: int = Field(64, ge=1, description="most streams open at one time")
    pass_timeout_s: float = Field(300.0, gt=0, description="seconds a pass may take, waiting for the model included")
    progress_timeout_s: float = Field(30.0, gt=0, description="seconds between two chunks of one tensor")
    idle_timeout_s: float = Field(600.0, gt=0, description="seconds a session may ask for nothing before it is closed")

    @field_validator("wire_encodings", mode="before")
    @classmethod
    def _between_commas(cls, given: object) -> object:
        return tuple(name.strip() for name in given.split(",")) if isinstance(given, str) else given
