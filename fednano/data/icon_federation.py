"""Makes the examples of a whole federation: domain B of the procedural icons, split non-IID over its clients."""

from pathlib import Path
from random import Random

from fednano.data.icons.generate import generate
from fednano.data.icons.layout import AskedScene, write_iconqa
from fednano.data.icons.questions import question
from fednano.data.partition import partition_by_topic
from fednano.errors import ExamplesInvalid


def write_icon_federation(
    out: Path,
    *,
    client_count: int,
    alpha: float,
    seed: int,
    train_count: int = 1000,
    val_count: int = 300,
    test_count: int = 600,
) -> list[Path]:
    """One folder a client, ``out/client-1`` and on, each in the official IconQA layout with splits train, val, test.

    Counts are over all clients. The same arguments give the same bytes. ``out`` may exist, its client folders not.
    """
    counts = {"train": train_count, "val": val_count, "test": test_count}
    folders = [out / f"client-{number}" for number in range(1, client_count + 1)]
    for folder in folders:
        if folder.exists():
            raise ExamplesInvalid(f"{folder} exists already: remove it or write elsewhere", folder=str(folder))
    asked_of_split = _asked(counts, seed)
    skills = {split: [asked.scene.skill for asked in each] for split, each in asked_of_split.items()}
    clients = partition_by_topic(skills, client_count=client_count, alpha=alpha, seed=seed)
    for folder, client in zip(folders, clients, strict=True):
        write_iconqa(folder, {split: [asked_of_split[split][i] for i in client[split]] for split in counts})
    return folders


def _asked(counts: dict[str, int], seed: int) -> dict[str, list[AskedScene]]:
    """The scenes of all splits; a pid is unique over clients and splits."""
    result: dict[str, list[AskedScene]] = {}
    first_pid = 1
    for number, (split, count) in enumerate(counts.items()):
        split_seed = seed * len(counts) + number
        random = Random(f"questions/{split_seed}")
        result[split] = [
            AskedScene(pid=str(pid), scene=scene, question=question(scene, "B", random))
            for pid, scene in enumerate(generate(count, "B", split_seed), start=first_pid)
        ]
        first_pid += count
    return result
