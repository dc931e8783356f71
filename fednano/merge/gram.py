"""The Gram-weighted merge: of the adapters' products, each client's weighed by the second moments of what it sees.

Adapters are linear, x + scale * U D x. Of all matrices W, the one nearest to every client's product on that client's
own inputs, sum_k w_k tr((W - U_k D_k) X_k (W - U_k D_k)^T) at its least, is W* = B S^-1 with

    S = sum_k w_k X~_k,   B = sum_k w_k U_k D_k X~_k,   X~_k = X_k + added * I,   w_k = n_k / sum n

(RegMean, Jin et al. 2023; K-FAC's Fisher with the identity for the outputs). Rank R is refitted near the mean of the
factors, D0 = sum_k w_k D_k and U0 = sum_k w_k U_k, by one round of least squares each way:

    U' = B D0^T (D0 S D0^T)^-1,   D1 = (U'^T U' + g I)^-1 (U'^T W* + g D0),   U1 = B D1^T (D1 S D1^T)^-1

with g = 0.01 tr(U'^T U') / R; the merged factors are ``step`` of the way from the mean's to these. W* depends on the
clients' products alone; D0 and U0, and with them the refit at a rank below D, depend on how a client divides its
product into factors.

All in float64, clients sorted by name. In memory are S and one client's matrices at a time.
Dimensions: D hidden size · R rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fednano.adapter_layout import Float32Array
from fednano.merge.gram_source import Gram, read_gram
from fednano.merge.kernels import Float64Array
from fednano.merge.streaming import STREAMING, Streaming
from fednano.merge.survey import BaseAdapter, SurveyedUpdate, load_base, survey
from fednano.merge.tensor_file import TensorFile, open_tensor_file
from fednano.merge.updates import ClientPart, MergeResult, MergeUpdate, in_merge_order

DOWN, UP = "down.weight", "up.weight"
# A claim: no client's trace counts for more than so many times that of the client in the lower middle.
MOST_TRACE = 4.0
# Of the mean of a diagonal, what keeps an inverse from failing where a matrix is of lower rank.
RIDGE = 1e-9
DOWN_RIDGE = 0.01


@dataclass(frozen=True, kw_only=True)
class GramRefit:
    """How far to go from the mean of the factors, and the part of the mean diagonal that X~ has more than X."""

    step: float = 0.5
    damping: float = 0.1


def merge_gram(
    updates: Sequence[MergeUpdate],
    base: Path,
    *,
    refit: GramRefit,
    max_update_norm: float = 0.0,
    streaming: Streaming = STREAMING,
) -> MergeResult:
    """All updates have their ``gram``. A client's share is its part of the weighted traces, over all modalities.

    ``max_update_norm`` shortens longer updates first; 0 does not.
    """
    base_adapter = load_base(base)
    surveyed = survey(updates, base_adapter, max_update_norm, streaming)
    clients = [
        _Client(update=one, gram=open_tensor_file(_gram_of(update)), base=base_adapter, weight=weight)
        for one, update, weight in zip(surveyed, in_merge_order(updates), _weights(surveyed), strict=True)
    ]
    modalities = sorted({name.split(".", 1)[0] for name in base_adapter.file.places})
    tensors: dict[str, Float32Array] = {}
    masses: list[list[float]] = []
    for modality in modalities:
        terms = _Terms(clients, modality, refit.damping)
        down_RD, up_DR = _refitted(terms, refit.step)
        tensors[f"{modality}.{DOWN}"], tensors[f"{modality}.{UP}"] = _narrow(down_RD), _narrow(up_DR)
        masses.append(terms.masses())
    total = math.fsum(math.fsum(of_modality) for of_modality in masses)
    shares = [math.fsum(of_client) / total for of_client in zip(*masses, strict=True)]
    return MergeResult(
        tensors=dict(sorted(tensors.items())),
        parts={
            one.client: ClientPart(share=share, update_norm=one.update_norm, is_clipped=one.is_clipped)
            for one, share in zip(surveyed, shares, strict=True)
        },
    )


@dataclass(frozen=True, kw_only=True)
class _Client:
    """One client's files, read anew whenever they are needed."""

    update: SurveyedUpdate
    gram: TensorFile
    base: BaseAdapter
    weight: float

    def factor(self, name: str) -> Float64Array:
        """A tensor of its adapter, pulled towards the base where the update is too long."""
        place = self.update.adapter.places[name]
        narrow_I = np.empty(place.size, np.float32)
        self.update.adapter.read(name, 0, narrow_I)
        theta_I, base_I = narrow_I.astype(np.float64), self.base.flat[name]
        if self.update.is_clipped:
            theta_I = base_I + self.update.clip * (theta_I - base_I)
        return theta_I.reshape(place.shape)


class _Terms:
    """The sums of one modality over the clients. Each method reads every client's files once."""

    def __init__(self, clients: Sequence[_Client], modality: str, damping: float) -> None:
        self._clients, self._modality = clients, modality
        traces = [read_gram(client.gram, modality).trace for client in clients]
        limit = MOST_TRACE * sorted(traces)[(len(traces) - 1) // 2]
        # What each client's X is multiplied by, and what is added to its diagonal.
        self._scales = [limit / trace if trace > limit > 0 else 1.0 for trace in traces]
        self._traces = [scale * trace for scale, trace in zip(self._scales, traces, strict=True)]
        self._hidden_size = int(clients[0].base.file.places[f"{modality}.{DOWN}"].shape[1])
        mean_trace = math.fsum(self._traces) / len(clients)
        # Where nobody has a token of the modality, all directions count alike.
        self._added = damping * mean_trace / self._hidden_size if mean_trace > 0 else 1.0

    def masses(self) -> list[float]:
        """w_k tr(X~_k), a client each."""
        return [
            client.weight * (trace + self._added * self._hidden_size)
            for client, trace in zip(self._clients, self._traces, strict=True)
        ]

    def means(self) -> tuple[Float64Array, Float64Array]:
        """D0 [R, D] and U0 [D, R]."""
        down_RD = sum(client.weight * self._down(client) for client in self._clients)
        up_DR = sum(client.weight * self._up(client) for client in self._clients)
        return np.asarray(down_RD), np.asarray(up_DR)

    def gram(self) -> Float64Array:
        """S [D, D]."""
        sum_DD = np.zeros((self._hidden_size, self._hidden_size))
        for client, scale in zip(self._clients, self._scales, strict=True):
            self._read(client).add_to(sum_DD, client.weight * scale)
        sum_DD[np.diag_indices_from(sum_DD)] += self._added * math.fsum(client.weight for client in self._clients)
        return sum_DD

    def product_with(self, down_RD: Float64Array) -> Float64Array:
        """B ``down_RD``^T [D, R]."""
        terms = (
            client.weight * self._up(client) @ (self._seen(client, scale) @ down_RD.T)
            for client, scale in zip(self._clients, self._scales, strict=True)
        )
        return np.asarray(sum(terms))

    def product_within(self, up_DR: Float64Array) -> Float64Array:
        """``up_DR``^T B [R, D]."""
        terms = (
            client.weight * (up_DR.T @ self._up(client)) @ self._seen(client, scale)
            for client, scale in zip(self._clients, self._scales, strict=True)
        )
        return np.asarray(sum(terms))

    def _seen(self, client: _Client, scale: float) -> Float64Array:
        """D_k X~_k [R, D]."""
        down_RD = self._down(client)
        return scale * self._read(client).times(down_RD) + self._added * down_RD

    def _read(self, client: _Client) -> Gram:
        return read_gram(client.gram, self._modality)

    def _down(self, client: _Client) -> Float64Array:
        return client.factor(f"{self._modality}.{DOWN}")

    def _up(self, client: _Client) -> Float64Array:
        return client.factor(f"{self._modality}.{UP}")


def _refitted(terms: _Terms, step: float) -> tuple[Float64Array, Float64Array]:
    """The merged down [R, D] and up [D, R]."""
    down0_RD, up0_DR = terms.means()
    gram_DD = terms.gram()
    up_DR = _best_up(terms, down0_RD, gram_DD)
    up_square_RR = up_DR.T @ up_DR
    ridge = DOWN_RIDGE * float(np.trace(up_square_RR)) / len(down0_RD)
    down1_RD = down0_RD
    if ridge > 0:
        # U'^T W* is (S^-1 B^T U')^T, for S is symmetric.
        wanted_RD = np.linalg.solve(gram_DD, terms.product_within(up_DR).T).T
        ridged_RR = up_square_RR + ridge * np.eye(len(down0_RD))
        down1_RD = np.asarray(np.linalg.solve(ridged_RR, wanted_RD + ridge * down0_RD), np.float64)
    up1_DR = _best_up(terms, down1_RD, gram_DD)
    return step * down1_RD + (1 - step) * down0_RD, step * up1_DR + (1 - step) * up0_DR


def _best_up(terms: _Terms, down_RD: Float64Array, gram_DD: Float64Array) -> Float64Array:
    """B D^T (D S D^T)^-1 [D, R]: the best U beside this D."""
    square_RR = down_RD @ gram_DD @ down_RD.T
    ridge = RIDGE * float(np.trace(square_RR)) / len(down_RD) or 1.0
    ridged_RR = square_RR + ridge * np.eye(len(down_RD))
    return np.asarray(np.linalg.solve(ridged_RR, terms.product_with(down_RD).T).T, np.float64)


def _weights(updates: Sequence[SurveyedUpdate]) -> list[float]:
    total = sum(update.example_count for update in updates)
    return [update.example_count / total for update in updates]


def _gram_of(update: MergeUpdate) -> Path:
    if update.gram is None:
        raise ValueError(f"{update.client} has no Gram matrices, which this merge needs of every client")
    return update.gram


def _narrow(values: Float64Array) -> Float32Array:
    return np.ascontiguousarray(values, dtype=np.float32)
