"""Merges that might be better than the Gram-weighted one, to be tried on validation; none is in the product.

D: hidden size   R: rank   S: tokens of a packed batch   M: tokens of a modality
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, load_file, save
from safetensors.torch import load_file as load_tensors

from fednano.merge.gram_source import read_gram
from fednano.merge.kernels import Float64Array
from fednano.merge.tensor_file import open_tensor_file
from fednano.merge.updates import MergeUpdate
from fednano.model.batch import consecutive, pack
from fednano.model.edge import NanoEdge, positions_of
from fednano.v1 import run_pb2
from services.aggregator.merging import merged
from services.client.fisher_pass import FISHER_BATCH, input_gradients
from services.client.local_work import Holdings, new_adapters
from tools.simulation.federation import Merge, Model, merge_by_method

DAMPING, OUTPUT_DAMPING = 0.1, 0.1
STEP = 0.5
ITERATIONS = 200
TOLERANCE = 1e-8


def variants(model: Model, holdings: Mapping[str, Holdings]) -> dict[str, Merge]:
    """By name; ``plain`` is the product's own."""
    return {
        "plain": merge_by_method,
        "step 1": partial(by_modality, {"image": 1.0, "text": 1.0}),
        "step 1 for images": partial(by_modality, {"image": 1.0, "text": STEP}),
        "step 1 for text": partial(by_modality, {"image": STEP, "text": 1.0}),
        "last half": last_half,
        "output factor, traces 1": partial(with_output_factor, model, holdings, normalizes=True),
        "output factor": partial(with_output_factor, model, holdings, normalizes=False),
    }


def by_modality(
    steps: Mapping[str, float], updates: Sequence[MergeUpdate], base: Path, config: run_pb2.RunConfig, _number: int
) -> bytes:
    """A step of its own for each modality."""
    tensors: dict[str, np.ndarray] = {}
    for modality, step in steps.items():
        stepping = run_pb2.RunConfig()
        stepping.CopyFrom(config)
        stepping.gram.step = step
        found = load(merged(updates, base, stepping).content)
        tensors |= {name: tensor for name, tensor in found.items() if name.startswith(f"{modality}.")}
    return save(tensors)


def last_half(updates: Sequence[MergeUpdate], base: Path, config: run_pb2.RunConfig, number: int) -> bytes:
    """FedAvg until half of the rounds are done."""
    chosen = run_pb2.RunConfig()
    chosen.CopyFrom(config)
    if number <= config.round_count // 2:
        chosen.method = run_pb2.METHOD_FEDAVG
    return merged(updates, base, chosen).content


def with_output_factor(
    model: Model,
    holdings: Mapping[str, Holdings],
    updates: Sequence[MergeUpdate],
    _base: Path,
    config: run_pb2.RunConfig,
    _number: int,
    *,
    normalizes: bool,
) -> bytes:
    """K-FAC's whole Fisher: W* solves sum_k w_k G_k (W - W_k) X_k = 0, with G_k the second moments of the gradients at
    the adapter's outputs after local training. ``normalizes`` gives every client's G_k the same trace.
    """
    tensors: dict[str, np.ndarray] = {}
    factors = [output_factors(model, holdings[update.client], update, config) for update in updates]
    for modality in config.adapter.modalities:
        down, up = _refitted(modality, updates, [each[modality] for each in factors], normalizes)
        tensors[f"{modality}.down.weight"], tensors[f"{modality}.up.weight"] = down, up
    return save({name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()})


def output_factors(
    model: Model, held: Holdings, update: MergeUpdate, config: run_pb2.RunConfig
) -> dict[str, Float64Array]:
    """[D, D] by modality: the mean over examples of the sum over tokens of g g^T, of true labels."""
    edge = NanoEdge(held.parts, new_adapters(config.adapter))
    edge.adapters.load_state_dict(load_tensors(update.adapter))
    width = config.adapter.hidden_size
    sums = {modality: torch.zeros(width, width, dtype=torch.float64) for modality in config.adapter.modalities}
    for group in consecutive(held.train.encoded, most_examples=FISHER_BATCH, most_tokens=1 << 14):
        batch = pack(group, held.parts.processor.image_token_id)
        gradients_SD = input_gradients(edge, model.language, batch, None)
        for modality, sum_DD in sums.items():
            g_MD = gradients_SD[positions_of(batch, modality)].double()
            sum_DD += g_MD.T @ g_MD
    return {modality: (sum_DD / len(held.train.encoded)).numpy() for modality, sum_DD in sums.items()}


def _refitted(
    modality: str, updates: Sequence[MergeUpdate], factors: Sequence[Float64Array], normalizes: bool
) -> tuple[Float64Array, Float64Array]:
    """Down [R, D] and up [D, R], as fednano.merge.gram has them, of the W* that has output factors."""
    files = [load_file(update.adapter) for update in updates]
    downs = [file[f"{modality}.down.weight"].astype(np.float64) for file in files]
    ups = [file[f"{modality}.up.weight"].astype(np.float64) for file in files]
    counts = np.array([update.example_count for update in updates], np.float64)
    weights, eye = counts / counts.sum(), np.eye(downs[0].shape[1])
    inputs = _damped([_input_gram(update, modality, eye) for update in updates], DAMPING)
    outputs = list(factors)
    if normalizes:
        outputs = [factor / (np.trace(factor) or 1.0) for factor in outputs]
    outputs = _damped(outputs, OUTPUT_DAMPING)
    gram = sum(w * x for w, x in zip(weights, inputs, strict=True))
    start = sum(w * u @ d @ x for w, u, d, x in zip(weights, ups, downs, inputs, strict=True)) @ np.linalg.inv(gram)
    wanted = sum(w * g @ u @ d @ x for w, g, u, d, x in zip(weights, outputs, ups, downs, inputs, strict=True))
    whole = _solved(list(zip(weights, outputs, inputs, strict=True)), np.asarray(wanted), np.asarray(start))
    return _near_the_mean(
        whole,
        np.asarray(gram),
        np.asarray(sum(w * d for w, d in zip(weights, downs, strict=True))),
        np.asarray(sum(w * u for w, u in zip(weights, ups, strict=True))),
    )


def _near_the_mean(
    whole: Float64Array, gram: Float64Array, down0: Float64Array, up0: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Rank R nearest to ``whole`` by one round of least squares each way, half of the way there."""
    up = _best_up(whole, gram, down0)
    ridge = 0.01 * np.trace(up.T @ up) / len(down0) * np.eye(len(down0))
    down1 = np.linalg.solve(up.T @ up + ridge, up.T @ whole + ridge @ down0) if ridge.any() else down0
    up1 = _best_up(whole, gram, down1)
    return STEP * down1 + (1 - STEP) * down0, STEP * up1 + (1 - STEP) * up0


def _best_up(whole: Float64Array, gram: Float64Array, down: Float64Array) -> Float64Array:
    square = down @ gram @ down.T
    ridge = 1e-9 * np.trace(square) / len(down) or 1.0
    found: Float64Array = np.linalg.solve(square + ridge * np.eye(len(down)), (whole @ gram @ down.T).T).T
    return found


def _solved(
    terms: Sequence[tuple[float, Float64Array, Float64Array]], wanted: Float64Array, start: Float64Array
) -> Float64Array:
    """W with sum_k w_k G_k W X_k = ``wanted``, by conjugate gradients: the operator is symmetric and positive."""
    found = start.copy()
    residual = wanted - _applied(terms, found)
    direction, square = residual.copy(), float((residual**2).sum())
    enough = TOLERANCE**2 * float((wanted**2).sum())
    for _ in range(ITERATIONS):
        if square <= enough:
            break
        image = _applied(terms, direction)
        length = square / float((direction * image).sum())
        found += length * direction
        residual -= length * image
        square, before = float((residual**2).sum()), square
        direction = residual + square / before * direction
    return found


def _applied(terms: Sequence[tuple[float, Float64Array, Float64Array]], matrix: Float64Array) -> Float64Array:
    return np.asarray(sum(weight * output @ matrix @ given for weight, output, given in terms))


def _damped(factors: Sequence[Float64Array], damping: float) -> list[Float64Array]:
    mean_trace = float(np.mean([np.trace(factor) for factor in factors]))
    added = damping * mean_trace / len(factors[0]) if mean_trace > 0 else 1.0
    return [factor + added * np.eye(len(factor)) for factor in factors]


def _input_gram(update: MergeUpdate, modality: str, eye: Float64Array) -> Float64Array:
    assert update.gram is not None
    return read_gram(open_tensor_file(update.gram), modality).times(eye)
