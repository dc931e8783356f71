"""Files that hold a secret: a bearer token, a join token."""

from pathlib import Path

from fednano.errors import SettingsInvalid


def read_secret(path: Path, flag: str) -> str:
    """The words of a file, which no message repeats. Raises SettingsInvalid."""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SettingsInvalid(f"{flag}: cannot read {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SettingsInvalid(f"{flag}: {path} holds no text") from None
