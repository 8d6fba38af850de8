"""Random batches, and the CUDA kernels on the CPU, for the tests of the kernels."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from dejavid.kernels import cuda, dispatch

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One ragged batch with live and frozen parameters."""

    values: torch.Tensor
    offsets: torch.Tensor
    centroids: torch.Tensor
    log_weights: torch.Tensor
    path_centroids: torch.Tensor
    path_log_weights: torch.Tensor


@pytest.fixture
def make_case():
    """Builds a `Case` from a seed, sample lengths and C, Tc, F."""

    def make(seed, lengths, n_classes, length, n_features, dtype=torch.float32):
        rng = np.random.default_rng(seed)

        def normal(*shape, scale=1.0):
            return torch.tensor(rng.normal(size=shape) * scale, dtype=dtype)

        shape = n_classes, length, n_features
        centroids, log_weights = normal(*shape), normal(*shape, scale=0.5)
        return Case(
            values=normal(sum(lengths), n_features),
            offsets=torch.tensor(np.concatenate([[0], np.cumsum(lengths)])),
            centroids=centroids,
            log_weights=log_weights,
            path_centroids=centroids + normal(*shape, scale=0.3),
            path_log_weights=log_weights + normal(*shape, scale=0.3),
        )

    return make


class StandIn:
    """Launches the kernels of weighted_dtw.cu on the CPU; every launch runs its threads in another order."""

    n_processors = 4

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._seeds = itertools.count()

    def __call__(self, kernel, grid, n_shared_bytes, *arguments):
        assert all(x.is_contiguous() for x in arguments if isinstance(x, torch.Tensor))
        plain = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in arguments]
        run = getattr(self._library, f"run_{kernel}")
        packed = (ctypes.c_int64 * len(plain))(*plain)
        run((ctypes.c_int * 3)(*grid), n_shared_bytes, next(self._seeds), packed)


@pytest.fixture(scope="session")
def stand_in_of(tmp_path_factory):
    """Compiles a CUDA source with g++ through cuda_on_cpu.h."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: the CUDA source cannot run on the CPU")

    def compile_source(source):
        folder = tmp_path_factory.mktemp("cuda")
        (folder / "weighted_dtw.cu").write_text(source)
        library = folder / "weighted_dtw.so"
        flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
        flags += ["-DHALF_SEARCH", f"-I{HERE}", f"-I{folder}", "-o", str(library)]
        subprocess.run(["g++", *flags, str(HERE / "weighted_dtw_on_cpu.cpp")], check=True)
        return StandIn(library)

    return compile_source


@pytest.fixture(scope="session")
def stand_in(stand_in_of):
    return stand_in_of(cuda.SOURCE.read_text())


@pytest.fixture(params=["torch", "cpu", "cuda"])
def backend(request, monkeypatch):
    """Backends that compute in float32. "cuda" runs on the CPU, through the stand-in."""
    if request.param == "cuda":
        launch, really = request.getfixturevalue("stand_in"), dispatch._open

        def open_kernels(name, samples, centroids):
            return cuda.CudaKernels(samples, launch) if name == "cuda" else really(name, samples, centroids)

        monkeypatch.setattr(dispatch, "_open", open_kernels)
    return request.param
