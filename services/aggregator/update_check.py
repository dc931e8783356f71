"""Whether an update may be merged. Each refusal names the client, the tensor and what is wrong with it.

Dimensions: I elements of one block.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from fednano.errors import UpdateInvalid
from fednano.merge.gram_source import read_whole_gram
from fednano.merge.streaming import blocks
from fednano.merge.tensor_file import open_tensor_file
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_FISHER, ARTIFACT_KIND_GRAM, ArtifactKind

# What safetensors adds to the tensors' bytes, metadata included: far more than a header of a few names needs.
HEADER_BYTES = 64 * 1024
BLOCK_ELEMENTS = 256 * 1024
KIND_WORDS: "Mapping[ArtifactKind.ValueType, str]" = {
    ARTIFACT_KIND_ADAPTER: "adapter",
    ARTIFACT_KIND_FISHER: "Fisher information",
    ARTIFACT_KIND_GRAM: "Gram matrices",
}
# Of the trace, how far below zero float32 rounding may put an eigenvalue.
GRAM_ROUNDING = 1e-6


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


def check_tensors(
    client: str, path: Path, shapes: Mapping[str, tuple[int, ...]], artifact: "ArtifactKind.ValueType"
) -> None:
    """Raises UpdateInvalid unless the file has exactly these tensors in finite float32, and values that can be.

    Fisher information is never negative, and Gram matrices are positive semi-definite.
    Float32 is all the bound on size that values need: the merge's sums are in float64, which no number of them fills.
    """
    kind = KIND_WORDS[artifact]
    _check_header_length(client, kind, path)
    try:
        # The library refuses tensors that overlap, leave gaps, or end before or after the file does.
        with safe_open(path, framework="np") as tensors:
            for name in sorted(set(tensors.keys()) ^ set(shapes)):
                fault = "is missing" if name in shapes else "is not a part of the run's adapter"
                raise _refuse(client, kind, name, fault)
            for name, shape in shapes.items():
                part = tensors.get_slice(name)
                if tuple(part.get_shape()) != shape:
                    raise _refuse(client, kind, name, _shape_fault(name, part.get_shape(), shape))
                if part.get_dtype() != "F32":
                    raise _refuse(client, kind, name, f"has type {part.get_dtype()}, not F32")
    except SafetensorError as error:
        raise _refuse(client, kind, "", f"is no safetensors file ({error})") from None
    _check_values(client, kind, path, is_fisher=artifact == ARTIFACT_KIND_FISHER)
    if artifact == ARTIFACT_KIND_GRAM:
        _check_grams(client, kind, path)


def _check_header_length(client: str, kind: str, path: Path) -> None:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > HEADER_BYTES:
        raise _refuse(client, kind, "", f"has a header of {header_bytes} bytes; {HEADER_BYTES} are allowed")


def _shape_fault(name: str, found: Sequence[int], expected: tuple[int, ...]) -> str:
    """In words where only the rank is another."""
    axis = 0 if name.endswith(".down.weight") else 1
    if len(found) == 2 and found[1 - axis] == expected[1 - axis]:
        return f"has rank {found[axis]}, but the run's adapter has rank {expected[axis]}"
    return f"has shape {list(found)}, not {list(expected)}"


def _check_values(client: str, kind: str, path: Path, *, is_fisher: bool) -> None:
    """Reads the file as the merge will read it: what is checked is what counts."""
    file = open_tensor_file(path)
    buffer_I = np.empty(BLOCK_ELEMENTS, np.float32)
    for block in blocks(file.places, BLOCK_ELEMENTS):
        values_I = buffer_I[: block.size]
        file.read(block.tensor, block.start, values_I)
        # A value that is no number is both of them.
        least, most = values_I.min(), values_I.max()
        if not (np.isfinite(least) and np.isfinite(most)):
            raise _refuse(client, kind, block.tensor, "has a value that is not finite")
        if least < 0 and (is_fisher or block.tensor.endswith(".gram.diagonal")):
            raise _refuse(client, kind, block.tensor, "has a negative value")


def _check_grams(client: str, kind: str, path: Path) -> None:
    """A low rank with a diagonal that is not negative needs no look: it cannot be anything else."""
    file = open_tensor_file(path)
    for name in file.places:
        if not name.endswith(".gram"):
            continue
        gram_DD = read_whole_gram(file, name)
        gram_DD[np.diag_indices_from(gram_DD)] += GRAM_ROUNDING * np.trace(gram_DD) + np.finfo(np.float64).tiny
        try:
            np.linalg.cholesky(gram_DD)
        except np.linalg.LinAlgError:
            raise _refuse(client, kind, name, "is not positive semi-definite") from None


def _refuse(client: str, kind: str, tensor: str, fault: str) -> UpdateInvalid:
    words = f"{client}: {kind} {tensor} {fault}" if tensor else f"{client}: {kind} {fault}"
    return UpdateInvalid(words, client=client, tensor=tensor, fault=fault)
