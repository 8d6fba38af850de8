"""Which part of the manifest is this process's, as schedulers tell it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..errors import ConfigError


def parse_shard(shard: str | None, environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Reads "i/n", or the variables of a Slurm array or of an indexed Kubernetes job.

    Args:
        shard: "i/n" with 0 <= i < n; None looks at SLURM_ARRAY_TASK_ID (with its MIN, STEP and COUNT),
            then at JOB_COMPLETION_INDEX (with JOB_COMPLETIONS, which the job's manifest must set), else takes
            all.

    Returns:
        (i, n): every n-th row from the i-th on.

    Raises:
        ConfigError: it is no shard, or a scheduler's index comes without a count.
    """
    where = "--shard"
    if shard is None and "SLURM_ARRAY_TASK_ID" in environ:
        names = ("ID", "MIN", "STEP", "COUNT")
        values = {name: environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names}
        where = ", ".join(f"SLURM_ARRAY_TASK_{name}={value}" for name, value in values.items())
        if values["ID"].isdigit():
            first, step = (int(values[n]) if values[n].isdigit() else d for n, d in (("MIN", 0), ("STEP", 1)))
            shard = f"{(int(values['ID']) - first) // max(step, 1)}/{values['COUNT']}"
        else:
            shard = values["ID"]
    elif shard is None and "JOB_COMPLETION_INDEX" in environ:
        index, count = environ["JOB_COMPLETION_INDEX"], environ.get("JOB_COMPLETIONS", "")
        where = f"JOB_COMPLETION_INDEX={index}, JOB_COMPLETIONS={count}"
        shard = f"{index}/{count}"
    elif shard is None:
        return 0, 1
    left, _, right = shard.partition("/")
    if not (left.isdigit() and right.isdigit() and int(left) < int(right)):
        raise ConfigError(
            f"{shard!r} is no shard", where=where, fix="i/n with 0 <= i < n, for example --shard 0/8"
        )
    return int(left), int(right)
