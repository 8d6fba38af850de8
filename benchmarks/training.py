"""Seconds per epoch of training a head, on made-up TSEs of the shapes of known data sets.

    python -m benchmarks.training [--sets hmdb51 ucf101 k400 ssv2] [--full hmdb51] [--out
    benchmarks/results/training.json]

Every shape is measured on some optimiser steps and scaled to its epoch; those named by --full train all their
epochs. The kernels' own share is measured on the same batches, so that the loop's cost around them shows. On
a machine that does other things, CPU seconds over the number of cores tell more than wall seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from dejavid.config import TrainSection
from dejavid.kernels import weighted_dtw
from dejavid.train import DejaVidHead, train_head
from dejavid.train.data import PackedSamples, batches, epoch_order
from dejavid.train.inputs import fit_inputs


@dataclass(frozen=True)
class Shape:
    """A data set as training sees it."""

    n_videos: int
    n_classes: int
    n_features: int
    n_steps: int


SHAPES = {
    "hmdb51": Shape(3_570, 51, 1_459, 15),
    "ucf101": Shape(9_537, 101, 1_459, 15),
    "k400": Shape(240_000, 400, 1_808, 15),
    "ssv2": Shape(168_913, 174, 6_328, 20),
}


ROUNDS = 3


def make_samples(shape: Shape, n_videos: int) -> PackedSamples:
    """TSEs of classes that differ: noise around one random walk per class, float16 as in a store."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.poisson(shape.n_steps, n_videos), 5, 150)
    # Every class once at least, then by chance.
    labels = np.concatenate([np.arange(shape.n_classes), random.integers(0, shape.n_classes, n_videos)])[
        :n_videos
    ]
    values = torch.empty(int(lengths.sum()), shape.n_features, dtype=torch.float16)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(shape.n_classes, shape.n_features, generator=generator)
    row = 0
    for length, label in zip(lengths.tolist(), labels.tolist(), strict=True):
        noise = torch.randn(length, shape.n_features, generator=generator)
        values[row : row + length] = 0.3 * centres[label] + noise
        row += length
    return PackedSamples(values, np.concatenate([[0], np.cumsum(lengths)]), labels)


def make_head(samples: PackedSamples, shape: Shape, length: int) -> DejaVidHead:
    inputs = fit_inputs(
        samples.values[:5000], torch.tensor([0, len(samples.values[:5000])]), standardise=True
    )
    generator = torch.Generator().manual_seed(1)
    return DejaVidHead(
        torch.randn(shape.n_classes, length, inputs.n_features, generator=generator),
        inputs=inputs,
        logits="per_step",
    )


def clock() -> np.ndarray:
    """Wall and process CPU seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def kernel_seconds(head: DejaVidHead, samples: PackedSamples, batch_size: int) -> np.ndarray:
    """Wall and CPU seconds of search, cost and gradients alone, over an epoch of `samples`."""
    total = np.zeros(2)
    order = epoch_order(len(samples.labels), 0, 0)
    for batch in batches(samples, order, batch_size, inputs=head.inputs, device=torch.device("cpu")):
        began = clock()
        distances = weighted_dtw(
            batch.values,
            batch.offsets,
            head.centroids,
            head.log_weights,
            path_centroids=head.path_centroids,
            path_log_weights=head.path_log_weights,
        )
        torch.autograd.grad(distances.sum(), [head.centroids, head.log_weights])
        total += clock() - began
    return total


def measure(name: str, length: int, batch_size: int, full: bool) -> dict[str, object]:
    shape = SHAPES[name]
    n_videos = shape.n_videos if full else min(shape.n_videos, max(2 * batch_size, shape.n_classes))
    samples = make_samples(shape, n_videos)
    head = make_head(samples, shape, length)
    # A given temperature: finding one costs a fixed time, which a few steps would not spread out.
    options = TrainSection(batch_size=batch_size, device="cpu", epochs=1, temperature=1.0)
    train_head(head, samples.subset(torch.arange(shape.n_classes)), options=options)  # compiles the kernels
    # Alternating, so that what else the machine does falls on both.
    epochs, kernels = [], []
    for _ in range(ROUNDS):
        kernels.append(kernel_seconds(head, samples, batch_size))
        began = clock()
        train_head(head, samples, options=options)
        epochs.append(clock() - began)
    scale = shape.n_videos / n_videos
    epoch_s, kernel_s = np.median(epochs, axis=0), np.median(kernels, axis=0)
    result: dict[str, object] = {
        "shape": asdict(shape),
        "centroid_steps": length,
        "batch_size": batch_size,
        "videos_measured": n_videos,
        "measured_or_scaled": "measured" if scale == 1 else f"scaled x {scale:.1f}",
        "s_per_epoch": scale * epoch_s[0],
        "cpu_s_per_epoch": scale * epoch_s[1],
        "kernel_cpu_s_per_epoch": scale * kernel_s[1],
        "epoch_over_kernels_cpu": epoch_s[1] / kernel_s[1],
    }
    if full:
        began = clock()
        train_head(head, samples, options=options.model_copy(update={"epochs": 36}))
        wall, cpu = clock() - began
        result |= {"total_s": wall, "total_cpu_s": cpu}
    result["peak_rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name:8s} {result['s_per_epoch']:8.2f} s/epoch, CPU {result['cpu_s_per_epoch']:.2f} s "
        f"({result['measured_or_scaled']}), {result['epoch_over_kernels_cpu']:.2f} x its kernels, "
        f"peak {result['peak_rss_gb']:.2f} GB"
        + (f"; 36 epochs: {result['total_s']:.1f} s, CPU {result['total_cpu_s']:.1f} s" if full else ""),
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--full", nargs="*", choices=SHAPES, default=["hmdb51"])
    parser.add_argument("--length", type=int, default=8, help="centroid steps")
    parser.add_argument("--batch-size", type=int, default=384)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = {
        name: measure(name, arguments.length, arguments.batch_size, name in arguments.full)
        for name in arguments.sets
    }
    if arguments.out is not None:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
