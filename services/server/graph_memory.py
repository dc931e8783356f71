"""The graphs of forward passes that await their backward pass, within a number of bytes.

P: rows of a joined pass   M: output positions of a joined pass   D: hidden size
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fednano.model.packing import JoinedPass, OutputKind, Passage
from services.server.metrics import ServerMetrics

# Of a pass: its whole graph, the inputs of each layer, or no graph. The last two make its backward pass twice as dear.
Keeping = Literal["whole", "layers", "nothing"]
# Whether the inputs of the layers may be all that is kept: where the whole graph does not fit, always, or never.
Checkpointing = Literal["auto", "on", "off"]


@dataclass(eq=False, kw_only=True)
class KeptStep:
    """A forward pass that awaits its backward pass: enough to do it again, and its graph as long as there is room."""

    passage: Passage
    output_kind: OutputKind
    output_shape: tuple[int, int]
    graph: "GroupGraph | None" = None

    @property
    def token_count(self) -> int:
        return len(self.passage.inputs_embeds_SD)

    def forget_graph(self) -> None:
        """Takes the step out of its group, which then waits for it no more."""
        if self.graph is not None:
            self.graph.members.pop(self, None)
            self.graph = None


@dataclass(eq=False, kw_only=True)
class GroupGraph:
    """What autograd kept of one joined pass. ``members`` are those that still await their backward pass."""

    joined: JoinedPass
    inputs_embeds_PD: Tensor
    outputs_M: Tensor
    size_bytes: int
    # The time of the forward pass: doing it again would take about as long.
    forward_s: float
    # Each with its place in ``joined``.
    members: dict[KeptStep, int]
    # Whether only each layer's inputs were kept.
    checkpointed: bool = False


class RowCost:
    """The most bytes that a row has been seen to take; a guess until a pass was measured."""

    def __init__(self, guessed_row_bytes: int) -> None:
        self._row_bytes = guessed_row_bytes
        self._measured = False

    def of(self, row_count: int) -> int:
        return row_count * self._row_bytes

    def learn(self, row_count: int, size_bytes: int) -> None:
        row_bytes = -(-size_bytes // row_count)
        self._row_bytes = max(row_bytes, self._row_bytes) if self._measured else row_bytes
        self._measured = True


class GraphMemory:
    """Keeps graphs until they are used, nobody awaits them, or younger ones need their room: then the oldest go."""

    def __init__(
        self,
        budget_bytes: int,
        first_row_bytes: int,
        metrics: ServerMetrics,
        *,
        checkpointing: Checkpointing = "off",
        first_layer_row_bytes: int = 1,
    ) -> None:
        self._budget_bytes = budget_bytes
        self._checkpointing = checkpointing
        # Oldest first.
        self._graphs: dict[GroupGraph, None] = {}
        self._whole, self._layers = RowCost(first_row_bytes), RowCost(first_layer_row_bytes)
        self.retained_bytes = 0
        self._metrics = metrics
        metrics.graph_bytes.set_function(lambda: self.retained_bytes)

    def set_aside(self, size_bytes: int, *, anyway: bool = False) -> bool:
        """Takes bytes out of the budget, for which the oldest graphs go, or gives them back where negative.

        False, and nothing is done, where the budget has not so many, unless they are taken ``anyway``.
        """
        if size_bytes > max(self._budget_bytes, 0) and not anyway:
            return False
        self._budget_bytes -= size_bytes
        self._shrink_to(self._budget_bytes)
        return True

    def fits(self, row_count: int) -> bool:
        """Whether a pass of so many rows may keep a graph at all."""
        return self._keeping_alone(row_count) != "nothing"

    def keeping(self, row_count: int) -> Keeping:
        """What to keep of a pass of so many rows.

        Both graphs of layers' inputs and those dropped cost a forward pass more, but the first leave room to others.
        """
        beside = self._whole.of(row_count) <= self._budget_bytes - self.retained_bytes
        if self._checkpointing == "auto" and not beside and self._layers.of(row_count) <= self._budget_bytes:
            return "layers"
        return self._keeping_alone(row_count)

    def keeping_again(self, row_count: int) -> Keeping:
        """The same for a forward pass that is done again, whose graph is used at once: whole wherever it fits."""
        fits = self._whole.of(row_count) <= self._budget_bytes
        return "whole" if fits or self._checkpointing == "off" else "layers"

    def make_room(self, row_count: int, keeping: Keeping = "whole") -> None:
        """Drops the oldest graphs until a pass of so many rows has room beside the others, or none is left."""
        if keeping != "nothing":
            cost = self._layers if keeping == "layers" else self._whole
            self._shrink_to(self._budget_bytes - cost.of(row_count))

    def keep(self, graph: GroupGraph) -> None:
        self.learn(len(graph.inputs_embeds_PD), graph.size_bytes, checkpointed=graph.checkpointed)
        self._graphs[graph] = None
        self.retained_bytes += graph.size_bytes
        self._shrink_to(self._budget_bytes)

    def learn(self, row_count: int, size_bytes: int, *, checkpointed: bool = False) -> None:
        """Notes what a pass took."""
        (self._layers if checkpointed else self._whole).learn(row_count, size_bytes)

    def release(self, step: KeptStep) -> None:
        """The step needs its graph no more; a graph that no step needs is freed."""
        graph = step.graph
        step.forget_graph()
        if graph is not None and not graph.members:
            self.drop(graph)

    def drop(self, graph: GroupGraph) -> None:
        """Frees a graph; its members will be computed again from their inputs."""
        for step in list(graph.members):
            step.forget_graph()
        if graph in self._graphs:
            del self._graphs[graph]
            self.retained_bytes -= graph.size_bytes

    def drop_all(self) -> None:
        for graph in list(self._graphs):
            self.drop(graph)

    def _keeping_alone(self, row_count: int) -> Keeping:
        """What may be kept where no other graph is."""
        if self._checkpointing != "on" and self._whole.of(row_count) <= self._budget_bytes:
            return "whole"
        if self._checkpointing != "off" and self._layers.of(row_count) <= self._budget_bytes:
            return "layers"
        return "nothing"

    def _shrink_to(self, limit_bytes: int) -> None:
        while self._graphs and self.retained_bytes > limit_bytes:
            self.drop(next(iter(self._graphs)))
            self._metrics.graphs_dropped.inc()
