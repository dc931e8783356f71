"""The examples of a cell's clients: generated icons, or a user's own folder split over them."""

import json
import shutil
from pathlib import Path
from random import Random

from experiments.cells import Cell
from fednano.data.client_folders import write_client_folders
from fednano.data.folder import open_folder, require_splits
from fednano.data.icon_federation import write_icon_federation
from fednano.data.iconqa import PROBLEMS_FILE
from fednano.errors import SettingsInvalid

MINIMUM_SHARE = 0.3


def make_examples(cell: Cell, folder: Path) -> Path:
    """``folder``/{examples_name}, with client-1 and on in it: made whole where it is not there yet."""
    out = folder / cell.examples_name
    if out.is_dir():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    if cell.examples:
        _split_own(cell, out)
        return out
    draft = folder / f".{out.name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    clients = write_icon_federation(
        draft,
        client_count=cell.clients,
        alpha=cell.alpha,
        seed=cell.seed,
        train_count=cell.train_examples,
        val_count=cell.val_examples,
        test_count=cell.test_examples,
    )
    for client in clients[: cell.noisy_clients]:
        _shuffle_answers(client, cell.seed)
    draft.rename(out)
    return out


def _split_own(cell: Cell, out: Path) -> None:
    if cell.noisy_clients:
        raise SettingsInvalid("noisy clients are made of generated icons alone: leave --examples out")
    folder = open_folder(Path(cell.examples))
    require_splits(folder, ("train", cell.split))
    write_client_folders(
        folder,
        out,
        client_count=cell.clients,
        alpha=cell.alpha,
        seed=cell.seed,
        minimum_share=MINIMUM_SHARE,
        allow_missing_images=False,
    )


def _shuffle_answers(client: Path, seed: int) -> None:
    """Gives every training question the answer of another one; validation and test stay as they are."""
    path = client / PROBLEMS_FILE
    problems = json.loads(path.read_text())
    trained = [pid for pid, problem in problems.items() if problem["split"] == "train"]
    answers = [problems[pid]["answer"] for pid in trained]
    Random(f"noise/{seed}/{client.name}").shuffle(answers)
    for pid, answer in zip(trained, answers, strict=True):
        problems[pid]["answer"] = answer
    path.write_text(json.dumps(problems, indent=1) + "\n")
