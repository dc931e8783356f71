"""The manifest of a model half: which family it is, and which language half the edge half was cut from."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fednano.errors import ModelInvalid
from fednano.model.fetched import FETCHED, fetched_folder, is_whole

MANIFEST_FILE = "manifest.json"
# In this order: the digest is over the files' bytes one after the other.
_DIGESTED_FILES = ("config.json", "model.safetensors")


class Manifest(BaseModel):
    """Lies as manifest.json in both halves. ``digest`` says which model they are of, and is the same in both.

    ``files`` holds the SHA-256 of the half's files, by their names; ``digest`` is then what ``fednano model split``
    took of the checkpoint. Where there is no ``files``, ``digest`` is the language half's own (``language_digest``).
    ``dtype`` is the type of the language model's weights as torch names it; empty: not recorded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    family: str
    digest: str
    hidden_size: int
    vocab_size: int
    dtype: str = ""
    files: Mapping[str, str] = {}


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
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2, exclude_defaults=True) + "\n")


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises ModelInvalid, naming the file, where the half in ``folder`` is not whole. Reads every byte of it."""
    for name, expected in manifest.files.items():
        actual = _sha256(folder, name, because="its manifest names it")
        if actual != expected:
            message = (
                f"{folder / name}: its digest is {actual}, the manifest says {expected}; copy the file again, or cut "
                f"the model again"
            )
            raise ModelInvalid(message, file=str(folder / name))


def check_language_half(folder: Path, manifest: Manifest) -> None:
    """Raises ModelInvalid where the files of the language half are not those that the manifest was made for."""
    if manifest.files:
        check_files(folder, manifest)
        return
    digest = language_digest(folder)
    if digest != manifest.digest:
        message = f"{folder}: the files' digest is {digest}, its manifest says {manifest.digest}; copy the folder again"
        raise ModelInvalid(message, file=str(folder))


def language_digest(folder: Path) -> str:
    """The SHA-256 of the language half in ``folder``: of its settings' bytes, then its weights'. Reads every byte."""
    return _sha256(folder, *_DIGESTED_FILES, because=f"a language half needs {' and '.join(_DIGESTED_FILES)}")


def sha256_of(path: Path) -> str:
    return _sha256(path.parent, path.name, because="it was there a moment ago")


def _sha256(folder: Path, *names: str, because: str) -> str:
    """Of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except FileNotFoundError as error:
            path = folder / name
            raise ModelInvalid(f"{path} is missing: {because}", file=str(path)) from error
    return digest.hexdigest()


def resolve_model(name_or_folder: str) -> Path:
    """The folder of a model (with edge/ and server/ in it): a preset's by its name, or one on this machine."""
    preset = Path(__file__).parent / "presets" / name_or_folder
    if name_or_folder in _preset_names():
        return preset
    if name_or_folder in FETCHED:
        return _fetched(name_or_folder)
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    names = ", ".join([*_preset_names(), *FETCHED])
    message = f"{name_or_folder} is neither a preset ({names}) nor a folder: name a preset or a model's folder"
    raise ModelInvalid(message, model=name_or_folder)


def _fetched(name: str) -> Path:
    folder = fetched_folder(name)
    if not is_whole(folder):
        message = f"the preset {name} is not at {folder} yet: run `fednano model fetch {name}` once on this machine"
        raise ModelInvalid(message, model=name)
    return folder


def _preset_names() -> list[str]:
    return sorted(path.name for path in (Path(__file__).parent / "presets").iterdir() if path.is_dir())
