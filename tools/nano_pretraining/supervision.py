"""What the vision encoder is taught: attributes of the whole picture, and what covers each cell of it.

B: batch   P: image tokens, one a cell   E: vision width   A: attributes   L: labels of a cell
Q: classes of all attributes or labels
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fednano.data.icons.draw import COLORS, SHAPES, SIDE_PX
from fednano.data.icons.scenes import RELATIONS, SKILLS, Drawing, Icon, Scene

IGNORED = -100
CELLS_A_SIDE = 4
NO_ICON = "none"


def attribute_values() -> dict[str, list[str]]:
    """The values of each attribute that a picture can have, read off its mean token."""
    digits = [str(i) for i in range(13)]
    return {
        "skill": list(SKILLS),
        "count": digits[1:7],
        "shape": list(SHAPES),
        "other_shape": list(SHAPES),
        "color": list(COLORS),
        "other_color": list(COLORS),
        "left": digits[:6],
        "right": digits[:6],
        "more": ["left", "right", "same"],
        "axis": ["row", "column"],
        "next": list(COLORS),
        "hour": digits[1:],
        "minute": ["00", "30"],
        "fraction": [f"{part}/{whole}" for whole in range(2, 7) for part in range(1, whole)],
        "part": digits[1:6],
        "whole": digits[2:7],
    }


def cell_values() -> dict[str, list[str]]:
    """The values of each label that a cell can have, read off its own token."""
    return {"shape": [NO_ICON, *SHAPES], "color": [NO_ICON, *COLORS], "relation": list(RELATIONS)}


class SupervisionHeads(nn.Module):
    """Linear heads on the encoder's tokens; each domain has its own, so that domains need not look alike inside."""

    def __init__(self, vision_width: int) -> None:
        super().__init__()
        self.picture = nn.ModuleDict({d: nn.Linear(vision_width, _class_count(attribute_values())) for d in "AB"})
        self.cell = nn.ModuleDict({d: nn.Linear(vision_width, _class_count(cell_values())) for d in "AB"})

    def picture_loss(self, features_BPE: Tensor, targets_BA: Tensor, domain: str) -> Tensor:
        """Summed over a picture's attributes, averaged over pictures."""
        logits_BQ = self.picture[domain](features_BPE.mean(dim=1))
        return _summed_loss(logits_BQ, targets_BA, attribute_values()) / len(features_BPE)

    def cell_loss(self, features_BPE: Tensor, targets_BPL: Tensor, domain: str) -> Tensor:
        """Summed over a cell's labels, averaged over cells."""
        logits_BPQ = self.cell[domain](features_BPE)
        loss = _summed_loss(logits_BPQ.flatten(0, 1), targets_BPL.flatten(0, 1), cell_values())
        return loss / targets_BPL[..., 0].numel()

    def picture_accuracy(self, features_BPE: Tensor, targets_BA: Tensor, domain: str) -> dict[str, float]:
        logits_BQ = self.picture[domain](features_BPE.mean(dim=1))
        return _accuracy(logits_BQ, targets_BA, attribute_values())

    def cell_accuracy(self, features_BPE: Tensor, targets_BPL: Tensor, domain: str) -> dict[str, float]:
        logits_BPQ = self.cell[domain](features_BPE)
        return _accuracy(logits_BPQ.flatten(0, 1), targets_BPL.flatten(0, 1), cell_values())


def picture_targets(scenes: Sequence[Scene]) -> Tensor:
    """[B, A]: the index of each attribute's value, IGNORED where a scene does not have the attribute."""
    values = attribute_values()
    rows = [{"skill": scene.skill, **scene.drawing.attributes} for scene in scenes]
    return torch.tensor([[values[a].index(row[a]) if a in row else IGNORED for a in values] for row in rows])


def cell_targets(scenes: Sequence[Scene]) -> Tensor:
    """[B, P, L]: which icon covers a cell; IGNORED in scenes without icons of their own."""
    return torch.tensor([_cells_of(scene.drawing) for scene in scenes])


def _cells_of(drawing: Drawing) -> list[list[int]]:
    if not drawing.icons:
        return [[IGNORED] * len(cell_values())] * CELLS_A_SIDE**2
    return [_labels_of(drawing.icons, row, column) for row in range(CELLS_A_SIDE) for column in range(CELLS_A_SIDE)]


def _labels_of(icons: Sequence[Icon], row: int, column: int) -> list[int]:
    cell_px = SIDE_PX / CELLS_A_SIDE
    x_px, y_px = (column + 0.5) * cell_px, (row + 0.5) * cell_px

    def beyond_px(icon: Icon) -> float:
        return max(abs(icon.x_px - x_px), abs(icon.y_px - y_px)) - 0.6 * icon.radius_px

    nearest = min(icons, key=beyond_px)
    if beyond_px(nearest) > cell_px / 2:
        return [0, 0, IGNORED]
    relation = RELATIONS.index(nearest.relation) if nearest.relation else IGNORED
    return [1 + SHAPES.index(nearest.shape), 1 + COLORS.index(nearest.color), relation]


def _class_count(values: dict[str, list[str]]) -> int:
    return sum(len(each) for each in values.values())


def _summed_loss(logits_BQ: Tensor, targets_BA: Tensor, values: dict[str, list[str]]) -> Tensor:
    parts = logits_BQ.split([len(each) for each in values.values()], dim=1)
    losses = [
        F.cross_entropy(part, target_B, ignore_index=IGNORED, reduction="sum")
        for part, target_B in zip(parts, targets_BA.unbind(dim=1), strict=True)
    ]
    return torch.stack(losses).sum()


def _accuracy(logits_BQ: Tensor, targets_BA: Tensor, values: dict[str, list[str]]) -> dict[str, float]:
    parts = logits_BQ.split([len(each) for each in values.values()], dim=1)
    result = {}
    for name, part, target_B in zip(values, parts, targets_BA.unbind(dim=1), strict=True):
        kept = target_B != IGNORED
        result[name] = round((part[kept].argmax(dim=1) == target_B[kept]).float().mean().item(), 3)
    return result
