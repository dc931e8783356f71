"""The manifest of a model half: which family it is, and which language half the edge half was cut from."""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fednano.errors import ModelInvalid

MANIFEST_FILE = "manifest.json"
# In this order: the digest is over the files' bytes one after the other.
_DIGESTED_FILES = ("config.json", "model.safetensors")


class Manifest(BaseModel):
    """Lies as manifest.json in both halves. ``digest`` is that of the language half, in both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    family: str
    digest: str
    hidden_size: int
    vocab_size: int


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        message = f"{path} is missing: give the edge/ or server/ folder of a model that was cut in two"
        raise ModelInvalid(message, file=str(path)) from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        message = f"{path} is no manifest: {field or 'the file'}: {first['msg']}; write the model's folder again"
        raise ModelInvalid(message, file=str(path), field=field) from error


def write_manifest(manifest: Manifest, folder: Path) -> None:
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n")


def language_digest(folder: Path) -> str:
    """The SHA-256 of the language half in ``folder``: of its settings' bytes, then its weights'. Reads every byte."""
    digest = hashlib.sha256()
    for name in _DIGESTED_FILES:
        try:
            with (folder / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except FileNotFoundError as error:
            path = folder / name
            message = f"{path} is missing: a language half needs {' and '.join(_DIGESTED_FILES)}"
            raise ModelInvalid(message, file=str(path)) from error
    return digest.hexdigest()


def resolve_model(name_or_folder: str) -> Path:
    """The folder of a model (with edge/ and server/ in it): a preset's by its name, or one on this machine."""
    preset = Path(__file__).parent / "presets" / name_or_folder
    if name_or_folder in _preset_names():
        return preset
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    names = ", ".join(_preset_names())
    message = f"{name_or_folder} is neither a preset ({names}) nor a folder: name a preset or a model's folder"
    raise ModelInvalid(message, model=name_or_folder)


def _preset_names() -> list[str]:
    return sorted(path.name for path in (Path(__file__).parent / "presets").iterdir() if path.is_dir())
