"""Who may make a pass with whom, and who had better wait a moment: decided from one look at all waiting requests."""

from collections.abc import Sequence

from services.server.decode_turns import DecodeTurns
from services.server.graph_memory import GroupGraph
from services.server.requests import (
    AnyRequest,
    BackwardRequest,
    DecodeRequest,
    ForwardRequest,
    LoneRequest,
    LossRequest,
)


class Waiting:
    """A snapshot. ``sessions`` counts those that are open, whether or not they wait for anything."""

    def __init__(self, requests: Sequence[AnyRequest], *, sessions: int, window_s: float, turns: DecodeTurns) -> None:
        self._backwards = [request for request in requests if isinstance(request, BackwardRequest)]
        self._everyone_waits = len(requests) >= sessions
        self._window_s = window_s
        self._turns = turns

    def ready_at_s(self, request: AnyRequest) -> float:
        """From when on the request may start a pass; it may join one at any time.

        A group's backward pass waits for members at most as long as their forward pass took, because that is what
        going on without them would cost: never more than twice what knowing the future would have cost.
        """
        if isinstance(request, LoneRequest) or self._everyone_waits:
            return request.arrived_s
        if isinstance(request, DecodeRequest):
            return self._turns.ready_at_s(request.arrived_s)
        graph = _graph(request)
        if graph is None:
            return request.arrived_s + self._window_s
        present = self._present(graph)
        patience_s = max(self._window_s, graph.forward_s) if len(present) < len(graph.members) else 0.0
        return min(member.arrived_s for member in present) + patience_s

    def may_join(self, request: AnyRequest, first: AnyRequest) -> bool:
        if isinstance(first, ForwardRequest) and isinstance(request, ForwardRequest):
            return (first.output_kind, first.keeps_graph) == (request.output_kind, request.keeps_graph)
        if isinstance(first, BackwardRequest) and isinstance(request, BackwardRequest):
            same_group = _graph(request) is _graph(first)
            return same_group and request.work.step.output_kind == first.work.step.output_kind
        if isinstance(first, DecodeRequest) and isinstance(request, DecodeRequest):
            return first.output_kind == request.output_kind
        return isinstance(first, LossRequest) and isinstance(request, LossRequest)

    def rest_of_group(self, taken: Sequence[AnyRequest]) -> list[BackwardRequest]:
        """The waiting members of the group that ``taken`` are of, if they are of one, which are not among them."""
        graph = _graph(taken[0]) if taken else None
        return [request for request in self._present(graph) if request not in taken] if graph is not None else []

    def _present(self, graph: GroupGraph) -> list[BackwardRequest]:
        return [request for request in self._backwards if request.work.step.graph is graph]


def _graph(request: AnyRequest) -> GroupGraph | None:
    return request.work.step.graph if isinstance(request, BackwardRequest) else None


def uses_graph(graph: GroupGraph, present: Sequence[BackwardRequest]) -> bool:
    """Whether those that are there take the graph, and the others are computed again, or the other way round.

    With g tokens in the graph, l of them still awaited and p there, and a backward pass as dear as a forward pass:
    taking it costs g now and 2(l - p) later; leaving it costs 2p now and g later.
    """
    awaited = sum(step.token_count for step in graph.members)
    return 2 * sum(request.token_count for request in present) >= awaited
