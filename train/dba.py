"""DTW barycenter averaging: one prototype TSE per class, the start of the head's centroids.

The barycenter minimises the summed warping distance to its samples by alternating two steps: align every
sample to the current barycenter, then replace each of its steps by the mean (or median) of all sample steps
aligned to it. Petitjean et al., *A global averaging method for dynamic time warping*, Pattern Recognition
2011.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, MissingDependencyError
from ..kernels import warping_path, weighted_dtw

Array = np.ndarray[Any, Any]
Update = Literal["mean", "median"]


@dataclass(frozen=True)
class Barycenter:
    """One barycenter and how it was reached.

    Attributes:
        values: (Tc, F) float32.
        n_updates: updates done until the result stood still, or `max_iter`.
        converged: whether it stood still.
        medoid: index of the sample it started from; None where it started elsewhere.
    """

    values: Tensor
    n_updates: int
    converged: bool
    medoid: int | None


def resample(tse: Tensor, length: int) -> Tensor:
    """Resamples a TSE to `length` steps, linearly and with both ends kept.

    Args:
        tse: (T, F), T >= 1.
        length: steps wanted; 1 gives the first step.

    Returns:
        (length, F), of the dtype of `tse`.
    """
    return _resample_all(tse, torch.tensor([0, len(tse)]), length)


def _resample_all(values: Tensor, offsets: Tensor, length: int) -> Tensor:
    """`resample` for N packed TSEs: (N * length, F)."""
    starts, last = offsets[:-1, None], (offsets.diff() - 1)[:, None]
    positions = torch.arange(length, dtype=torch.float64) * (last / max(length - 1, 1))
    left = positions.long().minimum(last)
    right = (left + 1).minimum(last)
    share = (positions - left).flatten().to(values).unsqueeze(1)
    low, high = ((starts + side).flatten().to(values.device) for side in (left, right))
    return torch.lerp(values[low], values[high], share)


def reservoir(labels: Sequence[int] | Array, max_per_class: int, seed: int) -> dict[int, list[int]]:
    """Chooses at most `max_per_class` samples of each class, uniformly, in one pass over the labels.

    Algorithm R, with one stream of random numbers for all classes, so the choice depends on the order.

    Returns:
        label -> positions in `labels`, labels in order of first appearance.
    """
    # NumPy's legacy generator: only it draws the same integers as the published runs did for a given seed.
    random = np.random.RandomState(seed)
    kept: dict[int, list[int]] = {}
    seen: dict[int, int] = {}
    for position, label in enumerate(int(label) for label in labels):
        seen[label] = seen.get(label, 0) + 1
        sample = kept.setdefault(label, [])
        if len(sample) < max_per_class:
            sample.append(position)
            continue
        place = int(random.randint(0, seen[label]))
        if place < max_per_class:
            sample[place] = position
    return kept


def barycenter(
    samples: Sequence[Tensor | Array],
    *,
    length: int = 8,
    max_iter: int = 100,
    tol: float | None = None,
    step_pattern: str = "no_diagonal",
    init: Literal["medoid", "tslearn"] | Tensor = "medoid",
    update: Update = "mean",
    resampled: bool = True,
    backend: str = "auto",
) -> Tensor:
    """The DTW barycenter of some TSEs, under the L1 distance with all weights 1.

    Without the diagonal move, the barycenter of one sample is a smoothed copy of it: neighbouring steps of a
    path share a sample step.

    Args:
        samples: TSEs (T_i, F), at least one, T_i >= 1.
        length: steps of the barycenter (Tc).
        max_iter: updates at most.
        tol: stop when no value moved more than this; None: when no alignment changed, an exact fixed point.
        step_pattern: "no_diagonal" or "classic".
        init: "medoid" (the sample with the least summed distance to the others, resampled to `length`),
            "tslearn" (its DBA: squared Euclidean cost, diagonal moves) or a tensor (length, F).
        update: "mean", or "median", which is what minimises an L1 cost for a given alignment.
        resampled: resample every sample to `length` steps first, as the DejaVid reference does; False aligns
            the samples at their own lengths.
        backend: weighted-DTW kernels.

    Returns:
        (length, F) float32.

    Raises:
        ConfigError: no samples, an empty or non-finite one, unequal F, or an impossible option.
        MissingDependencyError: `init="tslearn"` without tslearn.
    """
    return find_barycenter(
        samples,
        length=length,
        max_iter=max_iter,
        tol=tol,
        step_pattern=step_pattern,
        init=init,
        update=update,
        resampled=resampled,
        backend=backend,
    ).values


def find_barycenter(
    samples: Sequence[Tensor | Array],
    *,
    length: int,
    max_iter: int,
    tol: float | None,
    step_pattern: str,
    init: Literal["medoid", "tslearn"] | Tensor = "medoid",
    update: Update = "mean",
    resampled: bool = True,
    backend: str = "auto",
) -> Barycenter:
    """`barycenter`, with the record of how it was reached."""
    values, offsets = _packed(samples, length)
    if update not in ("mean", "median"):
        raise ConfigError(f"update={update!r}", where="barycenter", fix="use 'mean' or 'median'")
    # What a medoid is chosen from, and where it starts: always of the barycenter's length.
    starts = _resample_all(values, offsets, length).view(len(offsets) - 1, length, -1)
    if resampled:
        values, offsets = starts.flatten(0, 1), torch.arange(len(starts) + 1) * length
    medoid = None
    if isinstance(init, Tensor):
        center = init.to(values)
        if center.shape != starts.shape[1:]:
            raise ConfigError(
                f"init has the shape {tuple(init.shape)}, not {tuple(starts.shape[1:])}",
                where="barycenter",
                fix="give one (length, F) tensor",
            )
    elif init == "tslearn":
        center = _tslearn_barycenter(torch.split(values, offsets.diff().tolist()), length).to(values)
    elif init == "medoid":
        medoid = _medoid(starts, values, offsets, step_pattern, backend)
        center = starts[medoid]
    else:
        raise ConfigError(f"init={init!r}", where="barycenter", fix="use 'medoid', 'tslearn' or a tensor")

    exact = values.double()
    n_updates, path = 0, None
    for n_updates in range(1, max_iter + 1):
        lo, hi = warping_path(
            values,
            offsets,
            center[None],
            torch.zeros_like(center)[None],
            step_pattern=step_pattern,
            backend=backend,
        )
        new_path = torch.stack([lo[:, 0], hi[:, 0]])
        if tol is None and path is not None and torch.equal(path, new_path):
            return Barycenter(center, n_updates - 1, True, medoid)
        path = new_path
        previous, center = center, _average(exact, offsets, new_path, update).to(values)
        if tol is not None and (center - previous).abs().max().item() <= tol:
            return Barycenter(center, n_updates, True, medoid)
    return Barycenter(center, n_updates, False, medoid)


def _packed(samples: Sequence[Tensor | Array], length: int) -> tuple[Tensor, Tensor]:
    """The samples as float32 (S, F) and offsets (N + 1,), checked."""
    if length < 1:
        raise ConfigError(f"length={length}", where="barycenter", fix="a centroid has at least one step")
    if len(samples) == 0:
        raise ConfigError("no samples", where="barycenter", fix="give at least one TSE")
    tses = [torch.as_tensor(sample) for sample in samples]
    for index, tse in enumerate(tses):
        if tse.ndim != 2 or len(tse) == 0 or tse.shape[1] != tses[0].shape[-1]:
            raise ConfigError(
                f"a sample has the shape {tuple(tse.shape)}; the first has {tuple(tses[0].shape)}",
                where=f"barycenter, samples[{index}]",
                fix="give TSEs (T, F) with T >= 1 and one F",
            )
    # Values that are no numbers are found, and their sample named, by the kernels.
    return torch.cat(tses).float(), torch.tensor([0, *(len(tse) for tse in tses)]).cumsum(0)


def _medoid(starts: Tensor, values: Tensor, offsets: Tensor, step_pattern: str, backend: str) -> int:
    """Index of the sample that, as a centre, is nearest to all samples in sum; the first of equals."""
    distances = weighted_dtw(
        values, offsets, starts, torch.zeros_like(starts), step_pattern=step_pattern, backend=backend
    )
    # distances[j, i]: centre i, series j. The reference sums over the centres, so over axis 1 here.
    return int(distances.double().sum(1).argmin())


def _average(values: Tensor, offsets: Tensor, path: Tensor, update: Update) -> Tensor:
    """New centre (Tc, F): for each of its steps, the mean or median over the sample steps aligned to it."""
    starts = offsets[:-1].to(values.device).unsqueeze(1)
    lo, hi = path[0].to(starts) + starts, path[1].to(starts) + starts
    row = torch.arange(len(values), device=values.device)
    # member[t, s]: row s of the packed values is aligned to step t. Intervals of different samples are
    # disjoint.
    change = torch.zeros(lo.shape[1], len(values) + 1, dtype=values.dtype, device=values.device)
    one = torch.ones((), dtype=values.dtype, device=values.device)
    steps = torch.arange(lo.shape[1], device=values.device).expand_as(lo)
    change.index_put_((steps, lo), one, accumulate=True)
    change.index_put_((steps, hi + 1), -one, accumulate=True)
    member = change.cumsum(1)[:, :-1]
    if update == "mean":
        return (member @ values) / member.sum(1, keepdim=True)
    return torch.stack([values[row[inside > 0]].quantile(0.5, dim=0) for inside in member])


def _tslearn_barycenter(tses: Sequence[Tensor], length: int) -> Tensor:
    try:
        barycenters = importlib.import_module("tslearn.barycenters")
    except ImportError as error:
        raise MissingDependencyError(
            f"tslearn cannot be imported ({error})",
            where="init=tslearn",
            fix="pip install 'dejavid[baselines]'",
        ) from None
    center = barycenters.dtw_barycenter_averaging([tse.cpu().numpy() for tse in tses], barycenter_size=length)
    return torch.as_tensor(np.asarray(center))
