"""One process or many: what training needs to know of `torchrun`, and nothing where there is only one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """The element-wise sum over the processes."""
        if self.size > 1:
            distributed.all_reduce(numbers)
        return numbers

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process, so that all of them leave at the same step."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)))

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.size > 1:
            distributed.barrier()


def current_world() -> World:
    """The process group that was joined, or a world of one."""
    if distributed.is_available() and distributed.is_initialized():
        return World(distributed.get_rank(), distributed.get_world_size())
    return World(0, 1)


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Joins the processes that `torchrun` started; leaves them at the end. A no-op without torchrun.

    Uses nccl between GPUs and gloo between CPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield current_world()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if device.type == "cuda" else "gloo"
    # After a restart by torchrun, gloo now and then tries the address of a dead worker: it has to give
    # up, so that torchrun can restart once more. Long enough for the first process to compute centroids.
    distributed.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield current_world()
    finally:
        distributed.destroy_process_group()
