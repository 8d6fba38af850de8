"""Seconds per epoch of training a head, on made-up TSEs of the shapes of known data sets.

    python -m benchmarks.training [--sets hmdb51 ucf101 k400 ssv2] [--full hmdb51] [--out
    benchmarks/results/training.json]

Every shape is measured on some optimiser steps and scaled to its epoch; those named by --full train all their
epochs. The kernels' own share is measured on the same batches, so that the loop's cost around them shows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from dataclasses import dataclass
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
    n_videos = shape.n_videos if full else min(shape.n_videos, max(4 * batch_size, shape.n_classes))
    samples = make_samples(shape, n_videos)
    head = make_head(samples, shape, length)
    options = TrainSection(batch_size=batch_size, device="cpu", epochs=36 if full else 2)
    train_head(
        head, samples.subset(torch.arange(shape.n_classes)), options=options.model_copy(update={"epochs": 1})
    )
    kernels = kernel_seconds(head, samples, batch_size)
    began = clock()
    report = train_head(head, samples, options=options)
    wall, cpu = clock() - began
    scale = shape.n_videos / n_videos
    n_epochs = len(report.history)
    result = {
        "shape": shape.__dict__,
        "centroid_steps": length,
        "batch_size": batch_size,
        "videos_measured": n_videos,
        "epochs_measured": n_epochs,
        "measured_or_scaled": "measured" if scale == 1 else f"scaled x {scale:.1f}",
        "s_per_epoch": scale * wall / n_epochs,
        "s_per_epoch_median": scale * float(np.median([record["seconds"] for record in report.history])),
        "cpu_s_per_epoch": scale * cpu / n_epochs,
        "kernel_s_per_epoch": scale * kernels[0],
        "kernel_cpu_s_per_epoch": scale * kernels[1],
        "epoch_over_kernels_cpu": cpu / n_epochs / kernels[1],
        "total_s": wall if full else None,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(
        f"{name:8s} {result['s_per_epoch']:8.2f} s/epoch ({result['measured_or_scaled']}), "
        f"kernels {result['kernel_s_per_epoch']:.2f} s, CPU ratio {result['epoch_over_kernels_cpu']:.2f}, "
        f"peak {result['peak_rss_gb']:.2f} GB" + (f", {wall:.1f} s for {n_epochs} epochs" if full else ""),
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
