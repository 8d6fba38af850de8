"""The same shards on many machines: what schedulers say about this process, and drivers that start shards."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..errors import ConfigError

# (index, first index, count) as the schedulers name them; Kubernetes does not tell the count by itself.
_SCHEDULERS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
    ("JOB_COMPLETION_INDEX", "", "JOB_COMPLETIONS"),
    ("SLURM_PROCID", "", "SLURM_NTASKS"),
)


def parse_shard(shard: str | None, environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Which part of the manifest is this process's.

    Args:
        shard: "i/n" with 0 <= i < n; None looks at the variables of Slurm arrays, Kubernetes indexed jobs
            (set JOB_COMPLETIONS beside its index) and Slurm tasks, in this order, and else takes all.

    Returns:
        (i, n): every n-th row from the i-th on.

    Raises:
        ConfigError: it is no shard, or a scheduler's index has no count.
    """
    where = "--shard"
    if shard is None:
        for index, first, count in _SCHEDULERS:
            if index in environ:
                where = f"{index}={environ[index]}, {count}={environ.get(count, '')}"
                start = int(environ.get(first, "0") or 0)
                shard = f"{int(environ[index]) - start}/{environ.get(count, '')}"
                break
        else:
            return 0, 1
    left, _, right = shard.partition("/")
    if not (left.isdigit() and right.isdigit() and int(left) < int(right)):
        raise ConfigError(
            f"{shard!r} is no shard", where=where, fix="i/n with 0 <= i < n, for example --shard 0/8"
        )
    return int(left), int(right)
