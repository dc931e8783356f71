"""Looking into an adapter file: names, shapes, norms and its digest. Weights stay where they are."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from fednano.errors import ModelInvalid
from fednano.wire.artifacts import file_sha256

KNOWN_TYPES = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL")
DOWN, UP = ".down.weight", ".up.weight"


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """``norm`` is the L2 norm, computed in float64; None for a type that NumPy does not know, such as bfloat16."""

    name: str
    data_type: str
    shape: tuple[int, ...]
    norm: float | None


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """``norm`` is over all tensors, None where one has none; ``ranks`` has one entry unless modalities differ."""

    file: Path
    sha256: str
    size_bytes: int
    parameter_count: int
    ranks: tuple[int, ...]
    norm: float | None
    tensors: tuple[TensorFacts, ...]

    @property
    def is_finite(self) -> bool | None:
        """Whether every number is; None where that is not known."""
        return None if self.norm is None else math.isfinite(self.norm)

    def facts(self) -> dict[str, object]:
        """For JSON, which knows no number that is not finite: null stands there."""
        return {
            "file": str(self.file),
            "sha256": self.sha256,
            "sizeBytes": self.size_bytes,
            "parameterCount": self.parameter_count,
            "ranks": list(self.ranks),
            "norm": _finite(self.norm),
            "isFinite": self.is_finite,
            "tensors": [
                {
                    "name": one.name,
                    "dataType": one.data_type,
                    "shape": list(one.shape),
                    "norm": _finite(one.norm),
                }
                for one in self.tensors
            ],
        }


def inspect_adapter(file: Path) -> AdapterFacts:
    """Reads one tensor at a time. Raises ModelInvalid where it is no safetensors file."""
    if not file.is_file():
        raise ModelInvalid(f"there is no file {file}")
    try:
        with safe_open(file, framework="numpy") as opened:
            tensors = tuple(_tensor_facts(opened, name) for name in sorted(opened.keys()))
    except SafetensorError as error:
        raise ModelInvalid(f"{file} is no safetensors file: {error}") from None
    norms = [one.norm for one in tensors if one.norm is not None]
    ranks = {one.shape[0] for one in tensors if one.name.endswith(DOWN) and len(one.shape) == 2}
    ranks |= {one.shape[1] for one in tensors if one.name.endswith(UP) and len(one.shape) == 2}
    return AdapterFacts(
        file=file,
        sha256=file_sha256(file),
        size_bytes=file.stat().st_size,
        parameter_count=sum(math.prod(one.shape) for one in tensors),
        ranks=tuple(sorted(ranks)),
        norm=math.hypot(*norms) if len(norms) == len(tensors) else None,
        tensors=tensors,
    )


def _tensor_facts(opened: safe_open, name: str) -> TensorFacts:
    part = opened.get_slice(name)  # type: ignore[no-untyped-call]
    return TensorFacts(
        name=name,
        data_type=part.get_dtype(),
        shape=tuple(part.get_shape()),
        norm=_norm(opened, name) if part.get_dtype() in KNOWN_TYPES else None,
    )


def _norm(opened: safe_open, name: str) -> float:
    values = np.asarray(opened.get_tensor(name), np.float64)  # type: ignore[no-untyped-call]
    return float(np.linalg.norm(values.reshape(-1)))


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
