"""The state folder: what clients sent is for nobody else on the machine."""

import stat
from pathlib import Path

import pytest

from fednano.errors import SettingsInvalid
from services.aggregator.federation import open_federation
from services.aggregator.settings import AggregatorSettings


async def test_a_folder_that_the_aggregator_makes_is_its_users_alone(tmp_path: Path) -> None:
    federation = open_federation(AggregatorSettings(insecure=True, state=tmp_path / "state"))
    await federation.stop()
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_a_folder_that_is_there_stays_as_its_owner_made_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o750)
    await open_federation(AggregatorSettings(insecure=True, state=state)).stop()
    assert stat.S_IMODE(state.stat().st_mode) == 0o750


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_its_place_is_a_wrong_setting_and_nothing_to_try_again(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("notes")
    with pytest.raises(SettingsInvalid, match="can be no folder"):
        open_federation(AggregatorSettings(insecure=True, state=tmp_path / name))
