"""What every backend receives, checked once: a ragged batch of TSEs and the centroids to align it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError

STEP_PATTERNS = ("no_diagonal", "classic")


@dataclass(frozen=True)
class Samples:
    """N TSEs laid end to end.

    Attributes:
        values: (S, F) floating, contiguous, any device; S is the sum of the lengths.
        offsets: (N + 1,) int64 on the CPU; sample n owns the rows `offsets[n]:offsets[n + 1]`, at least one.
    """

    values: Tensor
    offsets: Tensor

    @property
    def n_samples(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """(N,) int64 on the CPU: T of every sample."""
        return self.offsets.diff()


def check_samples(values: Any, offsets: Any) -> Samples:
    """Accepts tensors and NumPy arrays; refuses what no backend could give a right answer for.

    Raises:
        ConfigError: a wrong rank or dtype, gaps in memory, offsets that do not cut `values` into non-empty
            samples, or a NaN or infinite value (its sample is named).
    """
    values = _tensor("values", values, 2)
    if values.requires_grad:
        raise ConfigError(
            "values require a gradient, but only centroids and log_weights have one",
            where="argument values",
            fix="pass values.detach()",
        )
    offsets = torch.as_tensor(offsets)
    if (
        offsets.dim() != 1
        or offsets.is_floating_point()
        or offsets.is_complex()
        or offsets.dtype == torch.bool
    ):
        raise ConfigError(
            f"offsets has shape {tuple(offsets.shape)} and dtype {offsets.dtype}",
            where="argument offsets",
            fix="pass the N + 1 row numbers at which samples start and end, as int64",
        )
    samples = Samples(values, offsets.to("cpu", torch.int64))
    _check_offsets(samples)
    _check_finite(samples)
    return samples


def check_parameters(
    samples: Samples, centroids: Any, log_weights: Any, prefix: str = ""
) -> tuple[Tensor, Tensor]:
    """Checks one pair of centroids and log-weights against the samples they meet.

    Args:
        prefix: "path_" for the frozen copy; only used to name the arguments.

    Returns:
        Both as (C, Tc, F) tensors of one dtype, float32 or float64.
    """
    names = f"{prefix}centroids", f"{prefix}log_weights"
    c, w = (_tensor(name, x, 3) for name, x in zip(names, (centroids, log_weights), strict=True))
    if c.shape != w.shape or c.dtype != w.dtype:
        raise ConfigError(
            f"{names[0]} is {tuple(c.shape)} {c.dtype}, {names[1]} is {tuple(w.shape)} {w.dtype}",
            where=f"arguments {names[0]}, {names[1]}",
            fix="pass two tensors of one shape (C, Tc, F) and one dtype",
        )
    if c.shape[2] != samples.values.shape[1]:
        raise ConfigError(
            f"values have {samples.values.shape[1]} features, {names[0]} have {c.shape[2]}",
            where=f"arguments values, {names[0]}",
            fix="use centroids made from the same encoder and row layout as the samples",
        )
    if 0 in c.shape:
        raise ConfigError(
            f"{names[0]} is empty: {tuple(c.shape)}", where=f"argument {names[0]}", fix="pass a class"
        )
    for name, x in zip(names, (c, w), strict=True):
        if x.device != samples.values.device:
            raise ConfigError(
                f"values are on {samples.values.device}, {name} on {x.device}",
                where=f"argument {name}",
                fix="move both to one device with .to(device)",
            )
    if c.dtype in (torch.float16, torch.bfloat16):
        c, w = c.float(), w.float()
    return c, w


def check_step_pattern(step_pattern: str) -> None:
    if step_pattern not in STEP_PATTERNS:
        raise ConfigError(
            f"unknown step pattern {step_pattern!r}",
            where="argument step_pattern",
            fix=f"one of {', '.join(STEP_PATTERNS)}",
        )


def check_distances(distances: Tensor, arguments: str) -> None:
    """A path visits every row of its sample and of its centroid: one bad number shows in a distance."""
    if not torch.isfinite(distances).all():
        n, c = (~torch.isfinite(distances)).nonzero()[0].tolist()
        raise ConfigError(
            f"the distance of sample {n} to class {c} is {distances[n, c].item()}",
            where=f"arguments {arguments}",
            fix="look for NaN or infinite parameters, log-weights above 88 or values beyond 1e30; "
            "lower the learning rate if training diverged",
        )


def _tensor(name: str, value: Any, rank: int) -> Tensor:
    tensor = torch.as_tensor(value)
    if tensor.dim() != rank or not tensor.is_floating_point():
        raise ConfigError(
            f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}",
            where=f"argument {name}",
            fix=f"pass a floating-point tensor or array of {rank} dimensions",
        )
    if not tensor.is_contiguous():
        # A copy could be of many gigabytes: whether to make one, and how often, is the caller's choice.
        raise ConfigError(
            f"{name} is not contiguous: shape {tuple(tensor.shape)}, strides {tensor.stride()}",
            where=f"argument {name}",
            fix=f"pass {name}.contiguous(), of an array numpy.ascontiguousarray({name})",
        )
    return tensor


def _check_offsets(samples: Samples) -> None:
    offsets, n_rows = samples.offsets, len(samples.values)
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != n_rows:
        raise ConfigError(
            f"offsets {offsets[:1].tolist()}..{offsets[-1:].tolist()} do not span values of {n_rows} rows",
            where="argument offsets",
            fix="offsets start at 0, end at len(values) and have one entry more than there are samples",
        )
    empty = (samples.lengths < 1).nonzero()
    if len(empty):
        n = int(empty[0])
        raise ConfigError(
            f"sample {n} has {int(samples.lengths[n])} rows (offsets {offsets[n : n + 2].tolist()})",
            where="argument offsets",
            fix="leave out videos without a single window",
        )


def _check_finite(samples: Samples) -> None:
    # One reading pass in the good case: a sum is finite only if every term is.
    values = samples.values
    if torch.isfinite(values.sum(dtype=torch.promote_types(values.dtype, torch.float32))):
        return
    bad = (~torch.isfinite(values)).any(dim=1).nonzero()
    if len(bad):
        row = int(bad[0])
        n = int(torch.searchsorted(samples.offsets, row, right=True)) - 1
        raise ConfigError(
            f"sample {n} holds NaN or infinite values ({len(bad)} rows of the batch do, first row {row})",
            where="argument values",
            fix="extract the video again, or leave it out: dejavid store verify names what is damaged",
        )
