"""The frozen language model behind the network, for a client that sends its labels along and gets the loss back.

One round trip a step instead of two, and no logits or hidden states on the wire; the price is that the server learns
the labels. Decoding and passes without labels go the usual way.

S: tokens of a packed batch   N: answer positions   D: hidden size
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fednano.split.remote import RemoteLanguageModel
from fednano.split.session import LabelledPass
from fednano.tracing import span


class LabelledLanguageModel(RemoteLanguageModel):
    """Its ``terms`` must ask for ``loss_on_server``."""

    def token_nll(
        self,
        inputs_embeds_SD: Tensor,
        sequence_lengths: Sequence[int],
        output_positions: Sequence[int],
        answer_ids_N: Tensor,
        weights_N: Tensor,
    ) -> Tensor:
        """Each answer token's negative log-likelihood [N], differentiable in ``inputs_embeds_SD``.

        ``weights_N`` foretells the gradient that will come back to each of them. Where another comes, the step is asked
        for once more with that one: right in any case, and one round trip where it was foretold.
        """
        step = LabelledPass(
            step_id=next(self._step_ids),
            inputs_embeds_SD=inputs_embeds_SD.detach(),
            sequence_lengths=tuple(sequence_lengths),
            output_positions=tuple(output_positions),
            answer_ids_N=answer_ids_N,
            weights_N=weights_N,
        )
        nll_N: Tensor = _RemoteLoss.apply(inputs_embeds_SD, self, step)  # type: ignore[no-untyped-call]
        return nll_N

    def pass_loss(self, step: LabelledPass) -> tuple[Tensor, Tensor]:
        """The losses [N] and the gradient [S, D] of their weighted sum."""
        with span("loss", step_id=step.step_id, tokens=len(step.inputs_embeds_SD)):
            return self._redo(lambda: self._run(self._loss(step)), "step with labels")

    def again(self, step: LabelledPass, weights_N: Tensor) -> Tensor:
        """The gradient with other weights."""
        return self.pass_loss(replace(step, step_id=next(self._step_ids), weights_N=weights_N))[1]

    async def _loss(self, step: LabelledPass) -> tuple[Tensor, Tensor]:
        session = await self._open()
        try:
            # Ids grow within a session, and this may be another one.
            return await session.loss(replace(step, step_id=next(self._step_ids)))
        except BaseException:
            self._drop(session)
            raise


class _RemoteLoss(torch.autograd.Function):
    """The gradient has come with the loss, and waits for its turn."""

    @staticmethod
    def forward(ctx: Any, inputs_embeds_SD: Tensor, remote: LabelledLanguageModel, step: LabelledPass) -> Tensor:
        nll_N, grad_SD = remote.pass_loss(step)
        ctx.remote, ctx.step = remote, step
        ctx.save_for_backward(grad_SD)
        return nll_N.to(inputs_embeds_SD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nll_N: Tensor) -> tuple[Tensor, None, None]:
        (grad_SD,) = ctx.saved_tensors
        if not torch.equal(grad_nll_N.cpu(), ctx.step.weights_N):
            grad_SD = ctx.remote.again(ctx.step, grad_nll_N)
        return grad_SD.to(ctx.step.inputs_embeds_SD), None, None
