"""Splits one folder of examples over clients, each in a folder of its own in the same layout."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fednano.data.example import Example
from fednano.data.folder import ExampleFolder, examples_of, main_splits
from fednano.data.partition import partition_by_topic
from fednano.errors import ExamplesInvalid


@dataclass(frozen=True, kw_only=True)
class ClientFolder:
    """What a client got: how many examples of each split, and of each topic over all its splits."""

    path: Path
    examples: dict[str, int]
    topics: dict[str, int]


def write_client_folders(
    folder: ExampleFolder,
    out: Path,
    *,
    client_count: int,
    alpha: float,
    seed: int,
    minimum_share: float,
    allow_missing_images: bool,
) -> list[ClientFolder]:
    """Writes ``out/client-1`` and on: Dirichlet(alpha) by topic, the same part of a topic in every split of a client.

    The same arguments give the same bytes. All or nothing: ``out`` must not exist, and appears when it is whole.
    """
    if out.exists():
        raise ExamplesInvalid(f"{out} exists already: remove it or write elsewhere", folder=str(out))
    examples = {
        split: examples_of(folder, split, allow_missing_images=allow_missing_images) for split in main_splits(folder)
    }
    parts = partition_by_topic(
        {split: [example.topic for example in each] for split, each in examples.items()},
        client_count=client_count,
        alpha=alpha,
        seed=seed,
        minimum_share=minimum_share,
    )
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    clients = [
        _write(
            folder, draft, out, f"client-{number}", {split: [examples[split][i] for i in part[split]] for split in part}
        )
        for number, part in enumerate(parts, start=1)
    ]
    draft.rename(out)
    return clients


def _write(
    folder: ExampleFolder, draft: Path, out: Path, name: str, examples: dict[str, list[Example]]
) -> ClientFolder:
    own = draft / name
    own.mkdir(parents=True)
    pids = {split: [example.pid for example in each] for split, each in examples.items()}
    for file, content in folder.subset_files(pids).items():
        (own / file).write_bytes(content)
    listed = [example for each in examples.values() for example in each]
    for image in sorted({image for example in listed for image in example.images}):
        copy = own / image.relative_to(folder.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, copy)
    return ClientFolder(
        path=out / name,
        examples={split: len(each) for split, each in pids.items()},
        topics=dict(sorted(Counter(example.topic for example in listed).items())),
    )
