"""Settings: secure unless told otherwise, and clear about what is wrong."""

from pathlib import Path

import pytest

from fednano.config import ServiceSettings, read_settings
from fednano.errors import SettingsInvalid


def test_plaintext_needs_to_be_asked_for() -> None:
    with pytest.raises(SettingsInvalid, match=r"^give --tls-ca, --tls-cert and --tls-key, or --insecure"):
        read_settings(ServiceSettings, [])


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDNANO_LISTEN", "127.0.0.1:7000")
    assert read_settings(ServiceSettings, ["--insecure"]).listen == "127.0.0.1:7000"
    assert read_settings(ServiceSettings, ["--insecure", "--listen", "127.0.0.1:7001"]).listen == "127.0.0.1:7001"


def test_a_wrong_setting_is_named_as_its_flag() -> None:
    with pytest.raises(SettingsInvalid, match="--shutdown-grace-s: "):
        read_settings(ServiceSettings, ["--insecure", "--shutdown-grace-s", "soon"])


def test_certificates_replace_the_insecure_flag() -> None:
    settings = read_settings(ServiceSettings, ["--tls-ca", "ca.pem", "--tls-cert", "c.pem", "--tls-key", "k.pem"])
    assert settings.security.tls_ca == Path("ca.pem")
    assert not settings.security.insecure
