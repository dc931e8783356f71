"""The files of an update, one for each kind of artifact, and what they measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_FISHER, ARTIFACT_KIND_GRAM, ArtifactKind
from services.client.finished_update import FinishedUpdate

NAMES: "Mapping[ArtifactKind.ValueType, str]" = {
    ARTIFACT_KIND_ADAPTER: "adapter.safetensors",
    ARTIFACT_KIND_FISHER: "fisher.safetensors",
    ARTIFACT_KIND_GRAM: "gram.safetensors",
}
KINDS = {name: kind for kind, name in NAMES.items()}


@dataclass(frozen=True, kw_only=True)
class Update:
    """The files to upload, the adapter first, and what was measured while they were made."""

    files: tuple[Path, ...]
    example_count: int
    metrics: dict[str, float]

    @property
    def kinds(self) -> "tuple[ArtifactKind.ValueType, ...]":
        return tuple(KINDS[file.name] for file in self.files)


def update_in(folder: Path, finished: FinishedUpdate) -> Update:
    """Of files that ``write_artifact`` put into ``folder``."""
    files = tuple(folder / name for name, _ in finished.files)
    return Update(files=files, example_count=finished.example_count, metrics=finished.metrics)


def has_kinds(finished: FinishedUpdate, kinds: "Sequence[ArtifactKind.ValueType]") -> bool:
    """Whether these are the artifacts that are asked for now."""
    return [name for name, _ in finished.files] == [NAMES[kind] for kind in kinds]


def write_artifact(folder: Path, kind: "ArtifactKind.ValueType", tensors: Mapping[str, Tensor]) -> Path:
    path = folder / NAMES[kind]
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path)
    return path


def file_metrics(downloaded: Path, uploaded: Sequence[Path]) -> dict[str, float]:
    """Bytes by what they are; adapters both ways. Fisher information is always named, also where there is none."""
    sizes = {KINDS[path.name]: float(path.stat().st_size) for path in uploaded}
    metrics = {
        "bytes/adapters": downloaded.stat().st_size + sizes[ARTIFACT_KIND_ADAPTER],
        "bytes/fisher": sizes.get(ARTIFACT_KIND_FISHER, 0.0),
    }
    return metrics | ({"bytes/gram": sizes[ARTIFACT_KIND_GRAM]} if ARTIFACT_KIND_GRAM in sizes else {})
