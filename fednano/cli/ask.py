"""One question to a tuned model: the edge half and the adapter in this process, the language half behind the network.

B: batch   P: image tokens   D: hidden size   R: rank
"""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fednano.cli.commands import check_address
from fednano.cli.presets import server_flags
from fednano.cli.processes import Processes
from fednano.config import Security
from fednano.errors import ModelDigestMismatch, ModelInvalid, SettingsInvalid
from fednano.model.adapter import NanoAdapters
from fednano.model.batch import EncodedExample, PackedBatch, pack_prompts
from fednano.model.edge import NanoEdge, image_embeds
from fednano.model.parts import EdgeParts, load_edge, resolve_model
from fednano.prompt import Prompt
from fednano.rpc.channels import open_channel, wait_until_serving
from fednano.rpc.retry import call_with_retry
from fednano.split.remote import RemoteLanguageModel
from fednano.split.session import SessionTerms
from fednano.v1 import split_service_pb2, split_service_pb2_grpc

START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 10.0
SPLIT_SERVICE = "fednano.v1.SplitService"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What to ask, and with what. ``server`` is host:port, or empty for a server of our own while it lasts.

    ``adapter_alpha`` is AdapterConfig.alpha of the run that made the adapter: the file does not say it.
    """

    image: Path
    question: str
    adapter: Path
    security: Security
    model: str = "nano"
    adapter_alpha: float = 32.0
    server: str = ""
    max_new_tokens: int = 16


def ask(question: Question) -> str:
    """The answer's words, decoded greedily. Raises ModelInvalid or SettingsInvalid for files that do not fit."""
    if question.server:
        check_address(question.server, "--server")
    parts = load_edge(resolve_model(question.model) / "edge")
    edge = NanoEdge(parts, load_adapters(question.adapter, parts.manifest.hidden_size, question.adapter_alpha))
    prompt = encode_prompt(parts, question)
    if question.server:
        return asyncio.run(_answer(question, question.server, edge, prompt))
    with (
        tempfile.TemporaryDirectory(prefix="fednano-ask-") as folder,
        Processes(Path(folder), print_nothing) as processes,
    ):
        return asyncio.run(_answer_with_own_server(question, processes, edge, prompt))


def load_adapters(path: Path, hidden_size: int, alpha: float) -> NanoAdapters:
    """The adapters of a file, with the rank and the modalities that it has; ModelInvalid where they do not fit."""
    if not path.is_file():
        raise ModelInvalid(f"no adapter file at {path}: a demo writes runs/demo/adapter.safetensors")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ModelInvalid(f"{path} is no safetensors file: {error}") from None
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".down.weight") and tensor.ndim == 2}
    modalities = sorted({name.partition(".")[0] for name in tensors})
    if len(ranks) != 1 or not set(modalities) <= {"image", "text"}:
        raise ModelInvalid(f"{path} holds no adapters: found {', '.join(sorted(tensors)[:6]) or 'nothing'}")
    adapters = NanoAdapters(modalities, hidden_size=hidden_size, rank=ranks.pop(), alpha=alpha)
    _check_shapes(path, tensors, dict(adapters.state_dict()))
    adapters.load_state_dict(tensors)
    return adapters


def _check_shapes(path: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        shapes = [list(tensors[name].shape) if name in tensors else None for tensors in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise ModelInvalid(f"{path}: {name} has shape {shapes[0]}, this model needs {shapes[1]}; is --model right?")


def encode_prompt(parts: EdgeParts, question: Question) -> PackedBatch:
    """The question with its picture as a batch of one."""
    try:
        with Image.open(question.image) as image:
            pixels_CHW = parts.processor.pixels(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        words = f"--image: {question.image} is no picture that can be read ({type(error).__name__})"
        raise SettingsInvalid(words) from None
    example = EncodedExample(
        prompt_ids=tuple(parts.processor.prompt_ids(Prompt(question=question.question))),
        answer_ids=(),
        image_embeds_PD=image_embeds(parts, torch.stack([pixels_CHW]))[0],
    )
    return pack_prompts([example], parts.processor.image_token_id)


def print_nothing(_: str) -> None:
    """What a local start has to say is of no interest beside the answer."""


async def _answer_with_own_server(question: Question, processes: Processes, edge: NanoEdge, prompt: PackedBatch) -> str:
    flags = ["--model", question.model, "--listen", "127.0.0.1:0", *server_flags(question.model)]
    server = processes.start("server", "services.server", flags)
    supervision = asyncio.create_task(processes.supervise())
    readiness = asyncio.create_task(processes.ready(server, START_TIMEOUT_S))
    try:
        await asyncio.wait({supervision, readiness}, return_when=asyncio.FIRST_COMPLETED)
        if supervision.done():
            supervision.result()
        return await _answer(question, await readiness, edge, prompt)
    finally:
        supervision.cancel()
        readiness.cancel()


async def _answer(question: Question, server: str, edge: NanoEdge, prompt: PackedBatch) -> str:
    peer = f"the LLM server at {server}"
    manifest, processor = edge.parts.manifest, edge.parts.processor
    async with open_channel(server, question.security) as channel:
        await wait_until_serving(channel, SPLIT_SERVICE, peer, CALL_TIMEOUT_S)
        stub: split_service_pb2_grpc.SplitServiceAsyncStub = split_service_pb2_grpc.SplitServiceStub(channel)
        await _check_model(stub, peer, manifest.digest)
        language = RemoteLanguageModel(
            stub,
            asyncio.get_running_loop(),
            SessionTerms(manifest=manifest, run="", peer=peer),
            give_up_after_s=ANSWER_TIMEOUT_S,
        )
        answers = await asyncio.to_thread(language.greedy_answers, edge, prompt, question.max_new_tokens)
    return processor.text(answers[0])


async def _check_model(stub: "split_service_pb2_grpc.SplitServiceAsyncStub", peer: str, digest: str) -> None:
    async def call() -> split_service_pb2.GetModelResponse:
        return await stub.GetModel(split_service_pb2.GetModelRequest(), timeout=CALL_TIMEOUT_S)

    theirs = (await call_with_retry(call, peer=peer, what="GetModel", give_up_after_s=CALL_TIMEOUT_S)).model.digest
    if theirs != digest:
        raise ModelDigestMismatch(
            f"{peer} serves the language half {theirs}, the edge half here fits {digest}: give both the same --model",
            theirs=theirs,
            ours=digest,
        )
