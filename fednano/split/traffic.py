"""How many bytes of tensors a client exchanged with the LLM server."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class Traffic:
    """Encoded tensor bytes in both directions, passes done again after a loss included."""

    activations_bytes: int = 0
    gradients_bytes: int = 0

    def reset(self) -> None:
        self.activations_bytes = self.gradients_bytes = 0
