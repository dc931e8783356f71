"""The settings of the client's own computing: where, how exactly, and what it may keep."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from fednano.config import ServiceSettings

MIB = 1 << 20


class EdgeSettings(ServiceSettings):
    """What the edge half computes on, and what becomes of its frozen encoders' features."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="what encoders, adapters and loss compute on; auto takes CUDA before MPS before the CPU"
    )
    encoder_type: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="type of the frozen encoder and connector; bfloat16 halves their memory and the features',"
        " and auto is that on a CUDA device alone",
    )
    encoder_batch: int = Field(
        64, ge=1, description="pictures that go through the encoder at one time; fewer where memory does not suffice"
    )
    feature_cache: Path | None = Field(
        None,
        description="folder for what the frozen encoders make of the pictures, for later starts; one in --state"
        " when it is unset and that is given. As private as the pictures",
    )
    feature_cache_bytes: int = Field(
        10 * 1024 * MIB, ge=0, description="most bytes of it, least recently used ones go first; 0 keeps none on disk"
    )
    feature_memory_bytes: int = Field(
        512 * MIB, ge=0, description="most bytes of features in memory; others are read, or computed, as they are used"
    )
    decode_workers: int = Field(
        2, ge=0, le=64, description="threads that read and decode pictures ahead of the encoder; 0: none of their own"
    )
