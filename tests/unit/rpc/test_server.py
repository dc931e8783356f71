"""A server that cannot do what it was told ends with the setting's name."""

from pathlib import Path

import pytest

from fednano.config import Security
from fednano.errors import SettingsInvalid
from fednano.rpc.server import serving


async def test_a_ready_file_that_cannot_be_written_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("notes")
    with pytest.raises(SettingsInvalid, match="--ready-file: cannot write"):
        async with serving(
            {}, "127.0.0.1:0", Security(insecure=True), grace_s=0.0, ready_file=tmp_path / "file" / "ready"
        ):
            raise AssertionError("it must not serve")


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:99999"])
async def test_an_address_without_a_port_is_a_wrong_setting_and_no_other_port_is_taken(listen: str) -> None:
    with pytest.raises(SettingsInvalid, match="is no host:port"):
        async with serving({}, listen, Security(insecure=True), grace_s=0.0):
            raise AssertionError("it must not serve")
