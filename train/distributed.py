"""Data-parallel training: every process takes its part of each batch, all take the mean gradient.

Started by ``torchrun --nproc-per-node 2 -m train.run ...``; a process started without it is a group of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Group:
    """The processes of one run; all step together and hold equal weights."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """The one process that validates, writes and talks."""
        return self.rank == 0

    def part(self, first: int, last: int, batch: int) -> list[int]:
        """Indices of this process's samples among samples ``first`` to ``last`` of batches of ``batch``.

        Raises:
            ValueError: a batch cannot be divided evenly.
        """
        if batch % self.size:
            raise ValueError(f"--batch must be a multiple of the {self.size} processes, received {batch}")
        mine = batch // self.size
        return [i for i in range(first, last) if i % batch // mine == self.rank]

    def mean_gradients(self, gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """Mean over processes, one by one; None stays where no process has a gradient."""
        if self.size == 1:
            return list(gradients)
        found = torch.tensor([g is not None for g in gradients], dtype=torch.float32, device=like[0].device)
        flat = torch.cat(
            [torch.zeros_like(p).ravel() if g is None else g.ravel() for g, p in zip(gradients, like, strict=True)]
        )
        dist.all_reduce(found)
        dist.all_reduce(flat)
        parts = (flat / self.size).split([p.numel() for p in like])
        return [part.view_as(p) if any_ else None for part, p, any_ in zip(parts, like, found.tolist(), strict=True)]

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Mean over processes of values that all have."""
        if self.size == 1:
            return dict(values)
        device = "cpu" if dist.get_backend() == "gloo" else "cuda"
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether any process says so: a signal that reached one stops all after the same step."""
        return flag if self.size == 1 else self.mean({"flag": float(flag)})["flag"] > 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Group]:
    """The group that torchrun started this process in."""
    if "WORLD_SIZE" not in os.environ:
        yield Group()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Group(rank=dist.get_rank(), size=dist.get_world_size())
    finally:
        dist.destroy_process_group()
