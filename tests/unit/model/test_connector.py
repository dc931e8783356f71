"""B: batch   P: image tokens   E: vision width   D: hidden size"""

import torch
import torch.nn.functional as F

from fednano.model.connector import Connector


def test_the_connector_is_two_linear_layers_with_a_gelu_between() -> None:
    connector = Connector(vision_width=8, connector_width=12, hidden_size=6)
    weights = dict(connector.named_parameters())
    features_BPE = torch.randn(2, 4, 8)
    middle = F.gelu(features_BPE @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    expected_BPD = middle @ weights["layers.2.weight"].T + weights["layers.2.bias"]
    torch.testing.assert_close(connector(features_BPE), expected_BPD)
