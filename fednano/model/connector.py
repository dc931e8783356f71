"""The connector: two linear layers that carry image tokens into the language model's space, as in LLaVA-1.5.

B: batch   P: image tokens   E: vision width   D: hidden size
"""

from torch import Tensor, nn


class Connector(nn.Module):
    def __init__(self, *, vision_width: int, connector_width: int, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(vision_width, connector_width), nn.GELU(), nn.Linear(connector_width, hidden_size)
        )

    def forward(self, features_BPE: Tensor) -> Tensor:
        image_embeds_BPD: Tensor = self.layers(features_BPE)
        return image_embeds_BPD
