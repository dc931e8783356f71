"""Local training: plain PyTorch, whatever stands behind the language half."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fednano.model.batch import EncodedExample, pack
from fednano.model.edge import LanguageHalf, NanoEdge
from fednano.tracing import span
from fednano.v1.run_pb2 import TrainConfig
from services.client.examples import chosen
from services.client.fisher_path import FisherPath
from services.client.fitting import FittingSize, pieces
from services.client.proximal import ProximalTerm

WEIGHTS = "adapter."
FISHER = "fisher."
# What AdamW keeps for each parameter.
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far training has come. ``loss_sum`` is over all examples seen, each as it was when its batch came."""

    step_count: int = 0
    example_count: int = 0
    loss_sum: float = 0.0


class LocalTraining:
    """Trains an edge's adapters in place; AdamW starts afresh, or from where ``restore`` puts it.

    ``proximal_mu`` holds them near where they are now; ``fisher`` gathers from every step.
    """

    def __init__(
        self,
        edge: NanoEdge,
        language: LanguageHalf,
        config: TrainConfig,
        *,
        proximal_mu: float = 0.0,
        fisher: FisherPath | None = None,
        fitting: FittingSize | None = None,
    ) -> None:
        self._fitting = fitting or FittingSize("a training step")
        self._edge, self._language, self._config, self._fisher = edge, language, config, fisher
        self._proximal = ProximalTerm(edge.adapters, proximal_mu)
        self._optimizer = torch.optim.AdamW(edge.adapters.parameters(), lr=config.learning_rate, weight_decay=0.0)
        self.position = Position()

    @property
    def mean_loss(self) -> float:
        return self.position.loss_sum / max(self.position.example_count, 1)

    def run(
        self, examples: Sequence[EncodedExample], *, order: torch.Generator, after_step: Callable[[], None]
    ) -> None:
        """Takes the steps from ``position`` on, to the last; ``after_step`` may raise to end it."""
        for step, indices in enumerate(batches(len(examples), self._config, order)):
            # The order is drawn anew from its seed: what was done before is passed over.
            if step >= self.position.step_count:
                with span("step", step=step, examples=len(indices)):
                    self._step(list(chosen(examples, indices)))
                after_step()

    def _step(self, examples: Sequence[EncodedExample]) -> None:
        """In one pass, or where the device's memory does not suffice in several with the same gradient in sum.

        Several add the examples up in another order than one: the last bits may differ.
        """
        fisher_before = (self._fisher.mean.tensors(), self._fisher.mean.example_count) if self._fisher else None

        def attempt(size: int) -> float:
            self._optimizer.zero_grad()
            if self._fisher is not None and fisher_before is not None:
                self._fisher.restore(*fisher_before)
            if (near := self._proximal()).requires_grad:
                near.backward()  # type: ignore[no-untyped-call]
            return sum(self._pass(piece, len(examples)) for piece in pieces(examples, size))

        loss_sum = self._fitting.run(len(examples), attempt)
        self._optimizer.step()
        self.position = Position(
            step_count=self.position.step_count + 1,
            example_count=self.position.example_count + len(examples),
            loss_sum=self.position.loss_sum + loss_sum,
        )

    def _pass(self, examples: Sequence[EncodedExample], step_examples: int) -> float:
        """Adds these examples' part of the step's gradient; returns the sum of their losses."""
        batch = pack(examples, self._edge.parts.processor.image_token_id).to(self._edge.device)
        inputs_embeds_SD = self._edge(batch)
        inputs_embeds_SD.retain_grad()
        nll_B = self._edge.answer_nll(self._language, inputs_embeds_SD, batch, weight=1 / step_examples)
        loss = nll_B.sum() / step_examples
        loss.backward()  # type: ignore[no-untyped-call]
        if self._fisher is not None:
            step, gradients_SD = self.position.step_count, inputs_embeds_SD.grad
            self._fisher.add(self._edge, self._language, batch, gradients_SD, step=step, step_examples=step_examples)
        return loss.item() * step_examples

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the weights, of what AdamW keeps and of the Fisher sums, as ``restore`` takes them."""
        saved = {f"{WEIGHTS}{name}": parameter.detach().clone() for name, parameter in self._parameters().items()}
        for name, parameter in self._parameters().items():
            kept = self._optimizer.state[parameter]
            saved |= {f"{moment}.{name}": kept[moment].clone() for moment in MOMENTS if moment in kept}
        if self._fisher is not None:
            saved |= {f"{FISHER}{name}": halves for name, halves in self._fisher.mean.tensors().items()}
        return saved

    def expects(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether ``restore`` can take these, by name, shape and type."""
        wanted: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for name, parameter in self._parameters().items():
            shapes = (torch.Size(), parameter.shape, parameter.shape)
            wanted[f"{WEIGHTS}{name}"] = (parameter.shape, parameter.dtype)
            wanted |= {
                f"{moment}.{name}": (shape, torch.float32) for moment, shape in zip(MOMENTS, shapes, strict=True)
            }
            if self._fisher is not None:
                wanted[f"{FISHER}{name}"] = (torch.Size((2, *parameter.shape)), torch.float64)
        return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == wanted

    def restore(self, tensors: Mapping[str, Tensor], position: Position) -> None:
        """Goes back to where ``tensors`` were taken: every later step has the same bits."""
        assert self.expects(tensors)
        names = list(self._parameters())
        kept = {index: {key: tensors[f"{key}.{name}"] for key in MOMENTS} for index, name in enumerate(names)}
        self._edge.adapters.load_state_dict({name: tensors[f"{WEIGHTS}{name}"] for name in names})
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": kept, "param_groups": groups})
        if self._fisher is not None:
            self._fisher.restore({name: tensors[f"{FISHER}{name}"] for name in names}, position.example_count)
        self.position = position

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        """In the order in which the optimizer has them."""
        return dict(self._edge.adapters.named_parameters())


def example_order(seed: int, round_number: int, client_id: str) -> torch.Generator:
    """The same in every process that is given the same three, and unrelated where one differs."""
    digest = hashlib.sha256(f"{seed}/{round_number}/{client_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def batches(example_count: int, config: TrainConfig, order: torch.Generator) -> Iterator[list[int]]:
    """Indices, every example once an epoch, the last batch of an epoch as short as it is."""
    step = 0
    for _ in range(max(config.local_epochs, 1)):
        shuffled = torch.randperm(example_count, generator=order).tolist()
        for start in range(0, example_count, config.batch_size):
            if config.local_steps and step == config.local_steps:
                return
            yield shuffled[start : start + config.batch_size]
            step += 1
