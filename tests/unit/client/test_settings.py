"""What of a client's settings is judged before anything is read."""

import pytest

from fednano.config import read_settings
from fednano.errors import SettingsInvalid
from services.client.settings import ClientSettings

NEEDED = ["--client-id", "a", "--examples", "e", "--server", "s:1", "--aggregator", "a:1", "--insecure"]


@pytest.mark.parametrize(("given", "run"), [("demo", "runs/demo"), ("runs/demo", "runs/demo"), ("", "")])
def test_a_run_goes_by_its_short_name_as_well(given: str, run: str) -> None:
    assert read_settings(ClientSettings, [*NEEDED, "--run", given]).run == run


@pytest.mark.parametrize("given", ["De mo", "runs/", "runs/demo/rounds/1", "../demo"])
def test_what_is_no_runs_name_is_a_wrong_setting(given: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"--run: .* is no run's name, such as demo or runs/demo"):
        read_settings(ClientSettings, [*NEEDED, "--run", given])
