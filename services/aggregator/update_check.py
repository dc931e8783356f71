"""Whether an update may be merged. Each refusal names the client, the tensor and what is wrong with it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fednano.errors import UpdateInvalid

# What safetensors adds to the tensors' bytes: far more than a header of a few names needs.
HEADER_BYTES = 64 * 1024


def max_file_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """More than a file of these tensors in float32 can have."""
    return HEADER_BYTES + sum(4 * int(np.prod(shape)) for shape in shapes.values())


def check_base(client: str, announced: str, expected: str) -> None:
    """Raises UpdateInvalid where training started from another adapter than the round's."""
    if announced != expected:
        raise UpdateInvalid(
            f"{client}: the update starts from adapter {announced or 'none'}, but the round's is {expected}",
            client=client,
            fault="base_adapter_sha256",
        )


def check_tensors(client: str, path: Path, shapes: Mapping[str, tuple[int, ...]], *, is_fisher: bool) -> None:
    """Raises UpdateInvalid unless the file has exactly these tensors in finite float32, never negative in Fisher."""
    kind = "Fisher information" if is_fisher else "adapter"
    try:
        with safe_open(path, framework="np") as tensors:
            for name in sorted(set(tensors.keys()) ^ set(shapes)):
                fault = "is missing" if name in shapes else "is not a part of the run's adapter"
                raise _refuse(client, kind, name, fault)
            for name, shape in shapes.items():
                part = tensors.get_slice(name)
                if tuple(part.get_shape()) != shape:
                    raise _refuse(client, kind, name, f"has shape {part.get_shape()}, not {list(shape)}")
                if part.get_dtype() != "F32":
                    raise _refuse(client, kind, name, f"has type {part.get_dtype()}, not F32")
                _check_values(client, kind, name, tensors.get_tensor(name), is_fisher)
    except SafetensorError as error:
        raise _refuse(client, kind, "", f"is no safetensors file ({error})") from None


def _check_values(client: str, kind: str, name: str, tensor: NDArray[np.float32], is_fisher: bool) -> None:
    if not np.isfinite(tensor).all():
        raise _refuse(client, kind, name, "has a value that is not finite")
    if is_fisher and (tensor < 0).any():
        raise _refuse(client, kind, name, "has a negative value")


def _refuse(client: str, kind: str, tensor: str, fault: str) -> UpdateInvalid:
    words = f"{client}: {kind} {tensor} {fault}" if tensor else f"{client}: {kind} {fault}"
    return UpdateInvalid(words, client=client, tensor=tensor, fault=fault)
