"""Which device a setting means, and what is said where there is none of that name."""

import pytest
import torch

from fednano.errors import SettingsInvalid
from services.server.backbone import choose_device, load_backbone
from services.server.settings import ServerSettings


def test_auto_is_the_best_that_is_there() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("asked", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_by_name(asked: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"--device {asked}"):
        choose_device(asked)


def test_the_model_is_as_the_settings_want_it() -> None:
    model = load_backbone(ServerSettings(insecure=True, compute_type="bfloat16", quantize="int8"))
    assert (model.dtype, model.quantize, model.device.type) == (torch.bfloat16, "int8", "cpu")
    outputs_ND = model.forward(torch.zeros(3, model.hidden_size), [3], [2], "hidden_states")
    assert bool(outputs_ND.isfinite().all())
