"""The whole state of a training run in one file, written atomically and read without executing anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from .errors import ConfigError
from .files import replacing
from .fingerprints import differing_keys

FILE = "checkpoint.safetensors"
_SCHEMA = "1"
_OPTIMIZER = "optimizer"  # first part of the names of its tensors


@dataclass
class TrainState:
    """Where a run stands, apart from the parameters and the optimiser.

    Attributes:
        epoch: the epoch to go on with.
        step: the step of it to go on with.
        correct: training samples classified right so far in this epoch.
        losses: loss of every step done, in order.
        history: one record per finished epoch.
        best_epoch: of the best validation so far; None before the first.
        finished: whether nothing is left to do.
    """

    epoch: int = 0
    step: int = 0
    correct: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    finished: bool = False


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], state: TrainState, facts: Mapping[str, Any]
) -> None:
    """Writes `folder`/checkpoint.safetensors.

    Args:
        tensors: parameters, frozen copies, optimiser moments, best parameters, by name.
        state: where the run stands.
        facts: what the run was started with; `load_checkpoint` compares them.
    """
    # Losses are float64 in a tensor: exact, and three times smaller than as text.
    blob = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    blob["losses"] = torch.tensor(state.losses, dtype=torch.float64)
    plain = {key: value for key, value in vars(state).items() if key != "losses"}
    metadata = {"schema": _SCHEMA, "state": json.dumps(plain), "facts": json.dumps(facts)}
    with replacing(folder / FILE) as temporary:
        save_file(blob, temporary, metadata=metadata)


def load_checkpoint(folder: Path, facts: Mapping[str, Any]) -> tuple[dict[str, Tensor], TrainState]:
    """Reads a checkpoint of a run with the same facts.

    Raises:
        ConfigError: there is none, it is damaged, or it is of another run; the differing keys are named.
    """
    path = folder / FILE
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if metadata["schema"] != _SCHEMA:
            raise ValueError(f"schema {metadata['schema']}, not {_SCHEMA}")
        plain, recorded = json.loads(metadata["state"]), json.loads(metadata["facts"])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(
            f"no readable checkpoint: {error}", where=str(path), fix="train from the start, without --resume"
        ) from None
    differing = differing_keys(recorded, json.loads(json.dumps(facts)))
    if differing:
        raise ConfigError(
            "the checkpoint is of another run: " + "; ".join(differing),
            where=str(path),
            fix="resume with the configuration it was started with, or train into another run.dir",
        )
    return tensors, TrainState(**plain, losses=tensors.pop("losses").tolist())


def refuse_checkpoint(folder: Path) -> None:
    """Makes sure that a new run would not write over another one.

    Raises:
        ConfigError: there is a checkpoint in the folder.
    """
    if (folder / FILE).exists():
        raise ConfigError(
            "a training run is there already",
            where=str(folder / FILE),
            fix="go on with it (--resume), choose another run.dir, or delete the folder",
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's moments, by names for a checkpoint."""
    return {
        f"{_OPTIMIZER}.{index}.{name}": tensor
        for index, moments in optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives an optimiser the moments among the tensors of a checkpoint."""
    plain = optimizer.state_dict()
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == _OPTIMIZER:
            index, _, moment = rest.partition(".")
            plain["state"].setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict(plain)
