"""Generates the Python code of the contract, proto/ -> fednano/v1/, whenever the project is built or installed."""

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path("fednano/v1")


class ProtoHook(BuildHookInterface[Any]):
    """Runs before a wheel or an editable install is put together."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Leaves messages, service stubs and their types in fednano/v1, from scratch."""
        generate(Path(self.root))


def generate(root: Path) -> None:
    """Compiles every proto file below ``root``; raises SystemExit with the compiler's words if one is wrong."""
    from grpc_tools import protoc

    target = root / PACKAGE
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.py*"):
        old.unlink()
    (target / "__init__.py").write_text('"""Generated from proto/fednano/v1 at install; not edited."""\n')
    sources = sorted(str(path) for path in (root / "proto" / PACKAGE).glob("*.proto"))
    scripts = Path(sys.executable).parent
    outputs = [f"--{kind}_out={root}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    plugins = [f"--plugin={name}={find_plugin(name, scripts)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    includes = [f"-I{root / 'proto'}", f"-I{files('grpc_tools') / '_proto'}"]
    if protoc.main(["protoc", *plugins, *includes, *outputs, *sources]) != 0:
        raise SystemExit("protoc refused proto/fednano/v1; its message stands above")


def find_plugin(name: str, scripts: Path) -> Path:
    """The console script of mypy-protobuf, which an isolated build keeps off the interpreter's own folder."""
    from shutil import which

    found = which(name) or which(name, path=str(scripts))
    if found is None:
        raise SystemExit(f"{name} is missing: install mypy-protobuf, a build requirement of this project")
    return Path(found)


if __name__ == "__main__":
    generate(Path(__file__).parent)
