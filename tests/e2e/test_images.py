"""What is in the images, and what is not."""

import json
import tomllib
from typing import Any

import pytest
from federation import REPOSITORY, TAG, Federation

SERVICES = ("server", "client", "aggregator")
COMPILERS = (
    "ar",
    "as",
    "c++",
    "cargo",
    "cc",
    "clang",
    "cpp",
    "g++",
    "gcc",
    "go",
    "ld",
    "make",
    "nvcc",
    "protoc",
    "rustc",
)
# What each service brings of its own, and what others have and it must not.
HAS = {
    "server": {"torch", "transformers"},
    "client": {"torch", "tokenizers", "PIL"},
    "aggregator": {"sqlalchemy", "alembic"},
}
LACKS = {
    "server": {"sqlalchemy", "alembic", "psycopg", "numba"},
    "client": {"sqlalchemy", "alembic", "psycopg", "numba", "transformers"},
    "aggregator": {"torch", "transformers", "tokenizers", "PIL"},
}
TOOLS_OF_OURS = {"grpc_tools", "mypy", "pytest", "hatchling", "matplotlib"}
LOOK = """
import importlib.util, json, os, shutil, sys
writable = [path for path in ("/", "/opt/fednano", "/usr/local/bin", "/etc", "/tmp") if os.access(path, os.W_OK)]
asked = json.loads(sys.argv[1])
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "writable": writable,
    "compilers": [name for name in asked["compilers"] if shutil.which(name)],
    "modules": [name for name in asked["modules"] if importlib.util.find_spec(name)],
}))
"""
MODULES = sorted(set().union(*HAS.values(), *LACKS.values(), TOOLS_OF_OURS))


@pytest.fixture(scope="module", params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def look(built: Federation, service: str) -> dict[str, Any]:
    """What a process finds in the image, confined as compose confines it."""
    asked = json.dumps({"compilers": COMPILERS, "modules": MODULES})
    output = built.engine.containers.run(
        f"fednano-{service}:{TAG}",
        ["-c", LOOK, asked],
        entrypoint="python",
        read_only=True,
        tmpfs={"/tmp": "mode=1777"},  # noqa: S108 - inside the container
        network_mode="none",
        cap_drop=["ALL"],
        remove=True,
    )
    found: dict[str, Any] = json.loads(output)
    return found


def test_a_service_is_nobody_with_its_own_extra_and_no_compiler(built: Federation, service: str) -> None:
    found = look(built, service)
    assert (found["uid"], found["gid"]) == (10001, 10001)
    assert found["writable"] == ["/tmp"]  # noqa: S108 - inside the container
    assert found["compilers"] == []
    modules = set(found["modules"])
    assert modules >= HAS[service]
    assert not modules & (LACKS[service] | TOOLS_OF_OURS)


def test_an_image_says_its_version_revision_and_how_to_ask_its_health(
    built: Federation, service: str, revision: str
) -> None:
    image = built.engine.images.get(f"fednano-{service}:{TAG}")
    config = image.attrs["Config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.version"] == TAG
    assert config["Labels"]["org.opencontainers.image.revision"] == revision
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "fednano.rpc.probe"]


def test_the_server_and_the_client_share_the_layer_with_torch(built: Federation) -> None:
    layers = [
        set(built.engine.images.get(f"fednano-{service}:{TAG}").attrs["RootFS"]["Layers"]) for service in SERVICES
    ]
    assert len(layers[0] & layers[1]) > len(layers[0] & layers[2])


def test_the_wheel_in_the_image_is_the_projects(built: Federation) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    program = "from importlib.metadata import version; print(version('fednano'))"
    output = built.engine.containers.run(
        f"fednano-client:{TAG}", ["-c", program], entrypoint="python", network_mode="none", remove=True
    )
    assert output.decode().strip() == version
