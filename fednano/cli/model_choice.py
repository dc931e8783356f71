"""Which language model a run is for: asked from a server, read from a model's folder, or said outright."""

from dataclasses import replace

from fednano.cli.commands import check_address
from fednano.cli.operator import call_peer
from fednano.cli.run_config import ConfigFlags
from fednano.config import Security
from fednano.errors import SettingsInvalid
from fednano.model.manifest import read_manifest, resolve_model
from fednano.rpc.channels import open_channel
from fednano.v1 import split_service_pb2, split_service_pb2_grpc

CALL_TIMEOUT_S = 10.0


async def ask_server(address: str, security: Security, patience_s: float) -> split_service_pb2.Model:
    """What the LLM server at ``address`` says of its model."""
    check_address(address, "--server")
    peer = f"the LLM server at {address}"
    async with open_channel(address, security) as channel:
        stub: split_service_pb2_grpc.SplitServiceAsyncStub = split_service_pb2_grpc.SplitServiceStub(channel)

        async def call() -> split_service_pb2.GetModelResponse:
            return await stub.GetModel(split_service_pb2.GetModelRequest(), timeout=CALL_TIMEOUT_S)

        return (await call_peer(call, channel, peer=peer, what="GetModel", patience_s=patience_s)).model


def with_folder(flags: ConfigFlags, model: str) -> ConfigFlags:
    """The flags with the digest and hidden size of a preset or of a model's folder; either half will do."""
    folder = resolve_model(model)
    half = "edge" if (folder / "edge").is_dir() else "server"
    manifest = read_manifest(folder / half)
    return with_model(flags, manifest.digest, manifest.hidden_size)


def with_model(flags: ConfigFlags, digest: str, hidden_size: int) -> ConfigFlags:
    """Raises SettingsInvalid where a flag says otherwise."""
    for flag, said, found in (
        ("--model-digest", flags.model_digest, digest),
        ("--hidden-size", flags.hidden_size, hidden_size),
    ):
        if said is not None and said != found:
            raise SettingsInvalid(f"{flag} is {said}, but the model has {found}: leave the flag out")
    return replace(flags, model_digest=digest, hidden_size=hidden_size)
