"""Processes that run one model together: the lead, which is asked, announces each pass to the others.

An announcement is a number of bytes, that many bytes of JSON, and the tensor that they describe.
"""

import json
import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LEAD = 0
# A rank that hears nothing for so long has lost the others; the lead says something far more often.
SILENCE_TIMEOUT_S = 600.0
AWAKE_EVERY_S = 60.0

Order = dict[str, Any]


class Ranks:
    """This process among those that ``torchrun`` started. ``turn`` is held from an announcement to the pass's end."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        self.turn = threading.RLock()

    @classmethod
    def join(cls) -> "Ranks":
        """Returns when all have joined; each takes the CUDA device of its number on its machine, if there are any."""
        on_cuda = torch.cuda.is_available()
        local = dist.get_node_local_rank(fallback_rank=0)
        device = torch.device("cuda", local) if on_cuda else torch.device("cpu")
        if on_cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timedelta(seconds=SILENCE_TIMEOUT_S))
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_lead(self) -> bool:
        return self.rank == LEAD

    def tell(self, order: Order, tensor: Tensor) -> None:
        """Announces to all others; the lead alone may."""
        tensor = tensor.detach().to(self.device).contiguous()
        said = order | {"shape": list(tensor.shape), "type": str(tensor.dtype).removeprefix("torch.")}
        text = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8).to(self.device)
        dist.broadcast(torch.tensor([len(text)], device=self.device), LEAD)
        dist.broadcast(text, LEAD)
        dist.broadcast(tensor, LEAD)

    def hear(self) -> tuple[Order, Tensor]:
        """The next announcement."""
        length_1 = torch.zeros(1, dtype=torch.int64, device=self.device)
        dist.broadcast(length_1, LEAD)
        text = torch.zeros(int(length_1.item()), dtype=torch.uint8, device=self.device)
        dist.broadcast(text, LEAD)
        order: Order = json.loads(bytes(text.cpu().tolist()))
        tensor = torch.empty(order["shape"], dtype=getattr(torch, order["type"]), device=self.device)
        dist.broadcast(tensor, LEAD)
        return order, tensor

    def leave(self) -> None:
        dist.destroy_process_group()
