"""A model of which every process holds a share of each layer: transformers' tensor parallelism, one lead, followers.

The lead is a LanguageModel like any other. What it computes, it announces first, and the followers compute it too; the
layers' sums go from each to each. Graphs and caches live in all of them, under the number that the lead gave.

P: rows of a joined pass   S: new positions of several streams   M: output positions, padding included
"""

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.distributed.configuration_utils import DistributedConfig

from fednano.errors import ModelInvalid
from fednano.model.decoding import Decoder, DecodeStep, DecodingState, check_decoding_lengths, decoder_of
from fednano.model.language import LanguageModel, read_language_model, try_out
from fednano.model.manifest import Manifest
from fednano.model.packing import JoinedPass, OutputKind
from fednano.model.ranks import AWAKE_EVERY_S, Order, Ranks
from fednano.telemetry import get_logger

log = get_logger("model.spread")
LOST_STEP = 70


@dataclass(eq=False, kw_only=True)
class _Graph:
    """One pass's graph in this process."""

    inputs_embeds_PD: Tensor
    outputs_M: Tensor

    def backward(self, grad_outputs_M: Tensor) -> Tensor:
        (grad_PD,) = torch.autograd.grad(self.outputs_M, self.inputs_embeds_PD, grad_outputs_M)
        return grad_PD


class LeadModel(LanguageModel):
    """Computes together with the followers. What fails in one process only would leave the others waiting: it ends."""

    def __init__(self, model: Any, manifest: Manifest, ranks: Ranks) -> None:
        super().__init__(model, manifest, may_end=False)
        self.packs_decoder = False
        self.ranks = ranks
        self._numbers = count(1)
        # Graphs and caches that are no more needed: the followers hear it with the next announcement.
        self._forgotten: list[int] = []

    def forward_rows(self, joined: JoinedPass, inputs_embeds_PD: Tensor, output_kind: OutputKind) -> Tensor:
        if torch.is_grad_enabled() and inputs_embeds_PD.requires_grad:
            outputs_M: Tensor = _SpreadPass.apply(inputs_embeds_PD, self, joined, output_kind)  # type: ignore[no-untyped-call]
            return outputs_M
        with self.together(_pass_order(joined, output_kind), inputs_embeds_PD):
            return super().forward_rows(joined, inputs_embeds_PD, output_kind)

    def keep_graph(self, joined: JoinedPass, inputs_embeds_PD: Tensor, output_kind: OutputKind) -> tuple[int, _Graph]:
        """A pass whose graph all processes keep, under a number."""
        number = next(self._numbers)
        order = _pass_order(joined, output_kind) | {"keep": number, "checkpointed": self.layers.is_checkpointed}
        leaf_PD = inputs_embeds_PD.detach().requires_grad_()
        with self.together(order, inputs_embeds_PD), torch.enable_grad():
            graph = _Graph(inputs_embeds_PD=leaf_PD, outputs_M=super().forward_rows(joined, leaf_PD, output_kind))
        weakref.finalize(graph, self._forgotten.append, number)
        return number, graph

    def number_of(self, state: DecodingState) -> int:
        """For a state that is new to it."""
        number = next(self._numbers)
        weakref.finalize(state, self._forgotten.append, number)
        return number

    @cached_property
    def decoder(self) -> Decoder:
        return _LeadDecoder(self)

    def own_decoder(self) -> Decoder:
        return decoder_of(self._model, [self.layers], packs=False)

    @contextmanager
    def together(self, order: Order, tensor: Tensor) -> Iterator[None]:
        """While the block runs, the followers do what ``order`` says of ``tensor``."""
        with self.ranks.turn:
            forgotten = self._forgotten[:]
            del self._forgotten[: len(forgotten)]
            try:
                self.ranks.tell(order | {"forgotten": forgotten}, tensor.to(self.dtype))
                yield
            except BaseException as error:
                # The others wait in the middle of a layer for a sum that will not come.
                log.error("lost_step", error=type(error).__name__, why=str(error)[:200])
                os._exit(LOST_STEP)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Keeps the followers awake while the block runs, and lets them go at its end."""
        ended = threading.Event()
        thread = threading.Thread(target=self._keep_awake, args=(ended,), name="ranks", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with self.together({"do": "end"}, torch.zeros(0)):
                pass
            self.ranks.leave()

    def _keep_awake(self, ended: threading.Event) -> None:
        while not ended.wait(AWAKE_EVERY_S):
            with self.together({"do": "nothing"}, torch.zeros(0)):
                pass


class _SpreadPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs_embeds_PD: Tensor, lead: LeadModel, joined: JoinedPass, output_kind: OutputKind
    ) -> Tensor:
        ctx.lead = lead
        ctx.number, ctx.graph = lead.keep_graph(joined, inputs_embeds_PD, output_kind)
        outputs_M: Tensor = ctx.graph.outputs_M.detach()
        return outputs_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs_M: Tensor) -> tuple[Tensor, None, None, None]:
        with ctx.lead.together({"do": "backward", "number": ctx.number}, grad_outputs_M):
            return ctx.graph.backward(grad_outputs_M), None, None, None


class _LeadDecoder(Decoder):
    def __init__(self, lead: LeadModel) -> None:
        super().__init__(lead.own_decoder()._model)
        self._lead = lead
        self._states: weakref.WeakKeyDictionary[DecodingState, int] = weakref.WeakKeyDictionary()

    def decode(self, steps: Sequence[DecodeStep], output_kind: OutputKind) -> list[Tensor]:
        for step in steps:
            # Before it is announced: a refusal is no loss of step.
            check_decoding_lengths(step.state, step.sequence_lengths)
            if step.state not in self._states:
                self._states[step.state] = self._lead.number_of(step.state)
        said = [{"state": self._states[step.state], "lengths": step.sequence_lengths} for step in steps]
        order = {"do": "decode", "kind": output_kind, "row_tile": self.row_tile, "steps": said}
        with self._lead.together(order, torch.cat([step.inputs_embeds_SD for step in steps])):
            return super().decode(steps, output_kind)


class Follower:
    """Does what the lead announces, until it announces the end."""

    def __init__(self, model: LanguageModel, ranks: Ranks) -> None:
        self._model, self._ranks = model, ranks
        self._graphs: dict[int, _Graph] = {}
        self._states: dict[int, DecodingState] = {}

    def run(self) -> None:
        """Raises RuntimeError where the lead is lost."""
        while True:
            order, tensor = self._ranks.hear()
            for number in order["forgotten"]:
                self._graphs.pop(number, None)
                self._states.pop(number, None)
            if order["do"] == "end":
                self._ranks.leave()
                return
            self._do(order, tensor)

    def _do(self, order: Order, tensor: Tensor) -> None:
        match order["do"]:
            case "forward":
                self._forward(order, tensor)
            case "backward":
                self._graphs.pop(order["number"]).backward(tensor)
            case "decode":
                self._decode(order, tensor)

    def _forward(self, order: Order, inputs_embeds_PD: Tensor) -> None:
        number = order.get("keep", 0)
        joined = JoinedPass(
            inputs_embeds_PD=inputs_embeds_PD.requires_grad_(bool(number)),
            position_ids_P=torch.tensor(order["position_ids"]),
            sequence_lengths=tuple(order["lengths"]),
            output_positions=tuple(order["outputs"]),
            input_ranges=(),
            output_ranges=(),
        )
        with torch.set_grad_enabled(bool(number)), self._model.layers.checkpointing(order.get("checkpointed", False)):
            outputs_M = self._model.forward_rows(joined, joined.inputs_embeds_PD, order["kind"])
        if number:
            self._graphs[number] = _Graph(inputs_embeds_PD=joined.inputs_embeds_PD, outputs_M=outputs_M)

    def _decode(self, order: Order, inputs_embeds_SD: Tensor) -> None:
        decoder = self._model.decoder
        decoder.row_tile = order["row_tile"]
        rows = torch.split(inputs_embeds_SD, [sum(said["lengths"]) for said in order["steps"]])
        steps = [
            DecodeStep(
                state=self._states.setdefault(said["state"], DecodingState()),
                inputs_embeds_SD=own_SD,
                sequence_lengths=tuple(said["lengths"]),
            )
            for said, own_SD in zip(order["steps"], rows, strict=True)
        ]
        decoder.decode(steps, order["kind"])


def load_lead(folder: Path, dtype: torch.dtype, ranks: Ranks) -> LeadModel:
    """This process's share, for the lead; the followers must be about to ``run``."""
    lead = LeadModel(*_share(folder, dtype, ranks), ranks)
    try_out(lead)
    return lead


def load_follower(folder: Path, dtype: torch.dtype, ranks: Ranks) -> Follower:
    return Follower(LanguageModel(*_share(folder, dtype, ranks), may_end=False), ranks)


def _share(folder: Path, dtype: torch.dtype, ranks: Ranks) -> tuple[Any, Manifest]:
    """Read whole, then cut: each process takes the memory of the whole model for a moment."""
    model, manifest = read_language_model(folder, dtype, ranks.device)
    if ranks.size == 1:
        return model.to(ranks.device), manifest
    try:
        config, _, mesh = type(model).prepare_distribute_model(DistributedConfig(tp_plan="auto", tp_size=ranks.size))
        model = type(model).maybe_distribute_model(model, config, mesh)
    except ValueError as error:
        raise ModelInvalid(
            f"{folder} cannot be spread over {ranks.size} processes: {error}", file=str(folder)
        ) from error
    # Not for a copy of the modules: what is between processes has none.
    model._mesh_manager = model._device_mesh = None
    return model.to(ranks.device).eval().requires_grad_(False), manifest


def _pass_order(joined: JoinedPass, output_kind: OutputKind) -> Order:
    return {
        "do": "forward",
        "kind": output_kind,
        "position_ids": joined.position_ids_P.tolist(),
        "lengths": joined.sequence_lengths,
        "outputs": joined.output_positions,
    }
