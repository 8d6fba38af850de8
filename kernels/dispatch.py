"""`weighted_dtw` and `warping_path`: check the input, choose the backend, hang the kernels into autograd."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..errors import ConfigError, MissingDependencyError
from .inputs import Samples, check_distances, check_parameters, check_samples, check_step_pattern

_LOG = logging.getLogger(__name__)


class Kernels(Protocol):
    """What a backend with hand-written gradients offers, for one batch of samples.

    Centroids and log-weights are (C, Tc, F), contiguous; distances and their gradients (N, C); `lo` and `hi`
    (N, C, Tc) of an integer type, the first and last row of sample n that row t of class c meets.
    """

    def __init__(self, samples: Samples) -> None: ...

    def search(
        self, centroids: Tensor, log_weights: Tensor, step_pattern: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distances along the best paths, and those paths: distances, lo, hi."""

    def path_cost(self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        """Distances along given paths."""

    def path_gradients(
        self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of `(distances * grad).sum()` in centroids and log-weights, paths held fixed."""


# Module and constructor of each backend, imported on first use: this package alone imports no numba or cupy.
_BACKENDS = {
    "reference": ("reference", "ReferenceKernels"),
    "torch": ("torch_ops", "TorchKernels"),
    "cpu": ("cpu", "CpuKernels"),
    "cuda": ("cuda", "CudaKernels"),
    "cuda_half": ("cuda", "half_search_kernels"),
}
_FLOAT32_ON = {"cpu": "cpu", "cuda": "cuda", "cuda_half": "cuda"}  # device type of the backends bound to one
_INSTALL = {"cpu": "pip install numba", "cuda": "pip install 'dejavid[gpu]'"}


def weighted_dtw(
    values: Any,
    offsets: Any,
    centroids: Any,
    log_weights: Any,
    *,
    path_centroids: Any = None,
    path_log_weights: Any = None,
    step_pattern: str = "no_diagonal",
    backend: str = "auto",
) -> Tensor:
    """Distances between samples and classes: `exp(log_weights) * |centroids - values|` summed on a path.

    The path is the cheapest one under `path_centroids` and `path_log_weights`; its cost and all gradients
    come from `centroids` and `log_weights`. Without the former two it is the path of the live parameters.
    Definition and tie rule: `kernels/reference.py`.

    Args:
        values: (S, F) rows of all samples, end to end; tensor or array of any floating type.
        offsets: (N + 1,) integers; sample n is `values[offsets[n]:offsets[n + 1]]`.
        centroids: (C, Tc, F).
        log_weights: (C, Tc, F).
        path_centroids: (C, Tc, F), together with `path_log_weights`; never differentiated.
        path_log_weights: (C, Tc, F).
        step_pattern: "no_diagonal" (moves (t-1, s) and (t, s-1)) or "classic" (also (t-1, s-1)).
        backend: "auto", "reference", "torch", "cpu", "cuda" or "cuda_half". The latter three compute in
            float32; "cuda_half" finds paths in half precision and costs them in float32.

    Returns:
        (N, C) distances in the dtype of the centroids (float32 for half types), on the samples' device,
        differentiable in centroids and log_weights.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit, a sample is empty, or a number is NaN or infinite.
        MissingDependencyError: the backend asked for is not usable here.
        OutOfMemory: a tensor does not fit; names it and its bytes.

    Example:
        >>> import numpy as np
        >>> x, c = np.float32([[0], [1], [3]]), np.float32([[[0], [3]]])
        >>> weighted_dtw(x, [0, 3], c, np.zeros_like(c))
        tensor([[3.]])
    """
    samples = check_samples(values, offsets)
    check_step_pattern(step_pattern)
    centroids, log_weights = check_parameters(samples, centroids, log_weights)
    if (path_centroids is None) != (path_log_weights is None):
        raise ConfigError(
            "path_centroids and path_log_weights belong together, one of them is missing",
            where="arguments path_centroids, path_log_weights",
            fix="pass both or none",
        )
    kernels = _open(backend, samples, centroids)
    lo, hi = None, None
    if path_centroids is not None:
        frozen = check_parameters(samples, path_centroids, path_log_weights, "path_")
        if frozen[0].shape != centroids.shape:
            raise ConfigError(
                f"path_centroids are {tuple(frozen[0].shape)}, centroids {tuple(centroids.shape)}",
                where="arguments path_centroids, centroids",
                fix="pass an earlier copy of the same parameters",
            )
        lo, hi = _search(kernels, *frozen, step_pattern, "path_centroids, path_log_weights")[1:]
    inputs = centroids, log_weights, kernels, step_pattern, lo, hi
    distances = cast(Tensor, _WeightedDtw.apply(*inputs))  # type: ignore[no-untyped-call]
    check_distances(distances, "centroids, log_weights")
    return distances


def warping_path(
    values: Any,
    offsets: Any,
    centroids: Any,
    log_weights: Any,
    *,
    step_pattern: str = "no_diagonal",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Best alignment of every sample with every class: the rows of the sample that each centroid row meets.

    Without the diagonal neighbouring centroid rows share a row: `lo[..., t + 1] == hi[..., t]`.

    Args:
        values, offsets, centroids, log_weights, step_pattern, backend: as for `weighted_dtw`.

    Returns:
        `(lo, hi)`: first and last row (inclusive, counted within the sample), int64 (N, C, Tc).

    Raises:
        ConfigError, MissingDependencyError, OutOfMemory: as for `weighted_dtw`.

    Example:
        >>> import numpy as np
        >>> x, c = np.float32([[0], [1], [3]]), np.float32([[[0], [3]]])
        >>> warping_path(x, [0, 3], c, np.zeros_like(c))
        (tensor([[[0, 1]]]), tensor([[[1, 2]]]))
    """
    samples = check_samples(values, offsets)
    check_step_pattern(step_pattern)
    centroids, log_weights = check_parameters(samples, centroids, log_weights)
    kernels = _open(backend, samples, centroids)
    _, lo, hi = _search(kernels, centroids, log_weights, step_pattern, "centroids, log_weights")
    return lo.long(), hi.long()


def grouped_warping_path(
    values: Any,
    offsets: Any,
    groups: Any,
    centroids: Any,
    log_weights: Any,
    *,
    step_pattern: str = "no_diagonal",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Best alignment of every sample with the centroid of its own class only: what barycenters need.

    Args:
        groups: (C + 1,) integers; the samples `groups[c]:groups[c + 1]` belong to class c (none is fine).
        values, offsets, centroids, log_weights, step_pattern, backend: as for `weighted_dtw`.

    Returns:
        `(lo, hi)`: first and last row (inclusive, counted within the sample), int64 (N, Tc).

    Raises:
        ConfigError, MissingDependencyError, OutOfMemory: as for `weighted_dtw`.
    """
    samples = check_samples(values, offsets)
    check_step_pattern(step_pattern)
    centroids, log_weights = check_parameters(samples, centroids, log_weights)
    bounds = [int(b) for b in groups]
    if (
        len(bounds) != len(centroids) + 1
        or bounds[0] != 0
        or bounds[-1] != samples.n_samples
        or bounds != sorted(bounds)
    ):
        raise ConfigError(
            f"groups do not cut {samples.n_samples} samples into {len(centroids)} classes",
            where="argument groups",
            fix="sort the samples by class and pass C + 1 ascending numbers from 0 to N",
        )
    paths = []
    for c, (first, last) in enumerate(pairwise(bounds)):
        if first == last:
            continue
        start, stop = int(samples.offsets[first]), int(samples.offsets[last])
        part = Samples(samples.values[start:stop], samples.offsets[first : last + 1] - start)
        own = centroids[c : c + 1], log_weights[c : c + 1]
        _, lo, hi = _search(_open(backend, part, centroids), *own, step_pattern, "centroids, log_weights")
        paths.append((lo[:, 0].long(), hi[:, 0].long()))
    return torch.cat([lo for lo, _ in paths]), torch.cat([hi for _, hi in paths])


def available_backends() -> dict[str, str]:
    """Whether each backend is usable here, and why: name -> "usable: ..." or "not usable: ..."."""
    cuda = "usable: CuPy" if _is_installed("cupy") else "not usable: cupy is not installed"
    if not torch.cuda.is_available():
        cuda = "not usable: torch sees no CUDA device"
    return {
        "reference": "usable: NumPy float64, slow, the definition",
        "torch": "usable: any torch device and dtype",
        "cpu": "usable: numba" if _is_installed("numba") else "not usable: numba is not installed",
        "cuda": cuda,
        "cuda_half": cuda + ", path search in half precision" if cuda.startswith("usable") else cuda,
    }


@cache  # looking costs as much as a small batch
def _is_installed(module: str) -> bool:
    return find_spec(module) is not None


def _open(backend: str, samples: Samples, centroids: Tensor) -> Kernels:
    name = _choose(samples.values.device.type, centroids.dtype) if backend == "auto" else backend
    _check_usable(name, samples, centroids)
    module, constructor = _BACKENDS[name]
    return cast(Kernels, getattr(importlib.import_module(f".{module}", __package__), constructor)(samples))


@cache
def _choose(device: str, dtype: torch.dtype) -> str:
    """The backend for a device and dtype; cached, so that each choice is logged once."""
    state = available_backends()
    if device not in ("cpu", "cuda") or dtype == torch.float64:
        name, why, level = "torch", f"tensors are {dtype} on {device}", logging.INFO
    elif state[device].startswith("usable"):
        name, why, level = device, state[device], logging.INFO
    else:
        name, why, level = "torch", f"backend {device!r} is {state[device]}", logging.WARNING
    _LOG.log(level, "weighted DTW runs on backend %r (%s)", name, why)
    return name


def _check_usable(name: str, samples: Samples, centroids: Tensor) -> None:
    if name not in _BACKENDS:
        raise ConfigError(
            f"unknown backend {name!r}", where="argument backend", fix=f"one of auto, {', '.join(_BACKENDS)}"
        )
    state, device = available_backends()[name], _FLOAT32_ON.get(name)
    if not state.startswith("usable"):
        raise MissingDependencyError(
            f"backend {name!r} is {state}",
            where="argument backend",
            fix=f"{_INSTALL[str(device)]}, or backend='auto'",
        )
    if device and samples.values.device.type != device:
        raise ConfigError(
            f"backend {name!r} got tensors on {samples.values.device}",
            where="argument backend",
            fix=f"move them with .to({device!r}), or use backend='auto'",
        )
    if device and centroids.dtype != torch.float32:
        raise ConfigError(
            f"backend {name!r} computes in float32, centroids are {centroids.dtype}",
            where="argument centroids",
            fix="pass float32 parameters, or use backend='torch'",
        )


def _search(
    kernels: Kernels, centroids: Tensor, log_weights: Tensor, step_pattern: str, arguments: str
) -> tuple[Tensor, Tensor, Tensor]:
    distances, lo, hi = kernels.search(centroids.detach(), log_weights.detach(), step_pattern)
    check_distances(distances, arguments)
    return distances, lo, hi


class _WeightedDtw(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        centroids: Tensor,
        log_weights: Tensor,
        kernels: Kernels,
        step_pattern: str,
        lo: Tensor | None,
        hi: Tensor | None,
    ) -> Tensor:
        if lo is None or hi is None:
            distances, lo, hi = kernels.search(centroids, log_weights, step_pattern)
        else:
            distances = kernels.path_cost(centroids, log_weights, lo, hi)
        ctx.kernels = kernels
        ctx.save_for_backward(centroids, log_weights, lo, hi)
        return distances

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.kernels.path_gradients(*ctx.saved_tensors, grad.contiguous())
        return (*gradients, None, None, None, None)
