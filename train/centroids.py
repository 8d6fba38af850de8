"""The `centroids` step: one DTW barycenter per class of the training split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor
from tqdm import tqdm

from ..errors import ConfigError
from ..files import write_atomically
from .data import PackedSamples
from .dba import Update, find_barycenter, reservoir
from .head import DejaVidHead, LogitsRule
from .inputs import InputLayer, fit_inputs

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Centroids:
    """One barycenter per class, in the order of `class_names`.

    Attributes:
        values: (C, Tc, F) float32.
        class_names: C names.
        n_updates: per class, the updates done.
        converged: per class, whether it stood still before `max_iter`.
        inputs: the input layer that the centroids live behind.
    """

    values: Tensor
    class_names: tuple[str, ...]
    n_updates: tuple[int, ...]
    converged: tuple[bool, ...]
    inputs: InputLayer

    def save(self, path: Path) -> None:
        """Writes everything but the record of the updates into one safetensors file."""
        tensors = {"centroids": self.values.cpu().contiguous()}
        tensors |= {f"inputs.{name}": buffer.cpu() for name, buffer in self.inputs.named_buffers()}
        card = json.dumps({"class_names": self.class_names, "inputs": self.inputs.card()})
        write_atomically(path, save_tensors(tensors, metadata={"card": card}))

    def head(self, *, step_pattern: str = "no_diagonal", logits: LogitsRule = "standardised") -> DejaVidHead:
        """The untrained head: distances to the barycenters with all weights 1."""
        return DejaVidHead(
            self.values,
            step_pattern=step_pattern,
            class_names=self.class_names,
            inputs=self.inputs,
            logits=logits,
        )


def fit_centroids(
    values: Tensor | Array,
    offsets: Tensor | Array,
    labels: Sequence[int] | Array,
    *,
    class_names: Sequence[str],
    length: int = 8,
    max_per_class: int = 50,
    max_iter: int = 100,
    tol: float | None = None,
    step_pattern: str = "no_diagonal",
    init: Literal["medoid", "tslearn"] = "medoid",
    update: Update = "mean",
    resampled: bool = True,
    features: str = "all",
    standardise: bool = False,
    position: float = 0.0,
    seed: int = 1337,
    backend: str = "auto",
    progress: bool = False,
) -> Centroids:
    """One barycenter per class of the training split.

    Args:
        values: (S, F) steps of all TSEs, one after the other.
        offsets: (N+1,) where each TSE begins.
        labels: N positions in `class_names`.
        class_names: C names; every one must have a sample.
        max_per_class: samples of a class that are read, chosen by `reservoir` with `seed`.
        features, standardise, position: of the input layer, see `fit_inputs`; it is fitted to the samples
        that are read.
        progress: show a bar over the classes.

    The other arguments are those of `barycenter`.

    Raises:
        ConfigError: a class without samples (named), or what `barycenter` raises.
    """
    kept = reservoir(labels, max_per_class, seed)
    missing = [name for index, name in enumerate(class_names) if index not in kept]
    if missing:
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise ConfigError(
            f"{len(missing)} of {len(class_names)} classes have no training sample: {shown}",
            where="the training split",
            fix="add training videos of these classes, or take the classes out of the manifest",
        )
    classes = [torch.tensor(kept[index]) for index in range(len(class_names))]
    everything = PackedSamples(values, offsets, labels)
    inputs = _fitted_inputs(everything, torch.cat(classes), features, standardise, position)
    found = []
    for members in tqdm(classes, desc="centroids", unit="class", disable=None if progress else True):
        packed, bounds = everything.take(members)
        samples = torch.split(inputs(packed, bounds), bounds.diff().tolist())
        found.append(
            find_barycenter(
                samples,
                length=length,
                max_iter=max_iter,
                tol=tol,
                step_pattern=step_pattern,
                init=init,
                update=update,
                resampled=resampled,
                backend=backend,
            )
        )
    return Centroids(
        torch.stack([center.values for center in found]),
        tuple(class_names),
        tuple(center.n_updates for center in found),
        tuple(center.converged for center in found),
        inputs,
    )


def _fitted_inputs(
    samples: PackedSamples, read: Tensor, features: str, standardise: bool, position: float
) -> InputLayer:
    # The usual caller has loaded only what is read: no second copy then.
    chosen = samples if len(read) == len(samples.labels) else samples.subset(read)
    inputs = fit_inputs(
        chosen.values, chosen.offsets, features=features, standardise=standardise, position=position
    )
    return inputs.to(chosen.values.device)


def load_centroids(path: Path) -> Centroids:
    """Reads what `Centroids.save` wrote.

    Raises:
        ConfigError: no such file, or a damaged one.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})["card"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        inputs = InputLayer.from_card(card["inputs"], tensors)
        return Centroids(tensors["centroids"], tuple(card["class_names"]), (), (), inputs)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(
            f"no readable centroids: {error}", where=str(path), fix="dejavid train makes them"
        ) from None
