"""An edge half of every family is loaded and used where transformers is not installed."""

import subprocess
import sys
from pathlib import Path

from tiny_families import FAMILIES

from fednano.model.cutting.source import LocalFolder
from fednano.model.cutting.split import split_model

# None in sys.modules makes an import fail.
PROGRAM = """
import sys
sys.modules["transformers"] = None
from pathlib import Path
import torch
from fednano.model.edge import image_embeds
from fednano.model.parts import load_edge
from fednano.prompt import Prompt
from PIL import Image
for folder in sys.argv[1:]:
    parts = load_edge(Path(folder) / "edge")
    pixels_CHW = parts.processor.pixels(Image.new("RGB", (40, 30)))
    ids = parts.processor.prompt_ids(Prompt(question="what is it ?"))
    embeds_BPD = image_embeds(parts, pixels_CHW[None])
    assert ids.count(parts.processor.image_token_id) == embeds_BPD.shape[1] > 1, folder
"""


def test_every_familys_edge_half_works_without_transformers(tmp_path: Path) -> None:
    folders = []
    for name, make in FAMILIES.items():
        make().save(tmp_path / name)
        split_model(LocalFolder(tmp_path / name), tmp_path / f"{name}-out", only="edge")
        folders.append(str(tmp_path / f"{name}-out"))
    # In a process of its own, for this one has imported transformers.
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *folders], capture_output=True, text=True, check=False, timeout=110
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
