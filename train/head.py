"""The classifier head: a centroid TSE and time-feature weights per class, compared by weighted DTW."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ..errors import ConfigError
from ..files import write_atomically
from ..kernels import weighted_dtw
from .inputs import InputLayer

LogitsRule = Literal["standardised", "per_step"]
CARD_FORMAT = "dejavid-head"
CARD_SCHEMA = 1


class DejaVidHead(nn.Module):
    """Distances to one centroid per class, and logits from them.

    The logits follow one of two rules, over the classes of one sample, divided by the temperature:

    - `standardised`: minus the distances, shifted to mean 0 and scaled to standard deviation 1 (of C - 1
      degrees of freedom). The rule of the paper's code. It is constant in size, so with two classes every
      logit is +-0.7071 and nothing can be learned: `train_head` refuses that. With one class, and for a
      sample equally far from all classes, all logits are 0 and pass no gradient on (the reference divides by
      1e-18).
    - `per_step`: minus the distances over the cells of the longest path, T + Tc - 1. Defined for any number
      of classes and any distances; its scale is what the temperature is for.

    Attributes:
        centroids: (C, Tc, F) parameter.
        log_weights: (C, Tc, F) parameter.
        log_temperature: () parameter; logits are divided by its exponential.
        path_centroids: (C, Tc, F) buffer: the frozen copy that paths are searched with in training mode.
        path_log_weights: (C, Tc, F) buffer, likewise.
        inputs: the `InputLayer` that TSE steps pass first; centroids live behind it, in its F features.
        class_names: C names, in the order of the logits.
        fingerprints: of what the head was made from, by name (`extract_fp`, `head_fp`).
        metrics: numbers of the training run, by name.
    """

    centroids: nn.Parameter
    log_weights: nn.Parameter
    log_temperature: nn.Parameter
    path_centroids: Tensor
    path_log_weights: Tensor

    def __init__(
        self,
        centroids: Tensor | np.ndarray[Any, Any],
        log_weights: Tensor | np.ndarray[Any, Any] | None = None,
        *,
        step_pattern: str = "no_diagonal",
        class_names: Sequence[str] | None = None,
        inputs: InputLayer | None = None,
        logits: LogitsRule = "standardised",
        temperature: float = 1.0,
        backend: str = "auto",
    ) -> None:
        """Builds a head from its centroids.

        Args:
            centroids: (C, Tc, F).
            log_weights: (C, Tc, F); None: zeros, every weight 1.
            step_pattern: "no_diagonal" or "classic".
            class_names: C different names; None: "0", "1", ...
            inputs: what TSE steps pass first; None: nothing.
            logits: "standardised" or "per_step".
            temperature: what logits are divided by, > 0.
            backend: weighted-DTW kernels.

        Raises:
            ConfigError: shapes that do not fit, non-finite values, repeated names, or an unknown option.
        """
        super().__init__()
        start = torch.as_tensor(centroids).to(torch.float32).clone()
        weights = (
            torch.zeros_like(start) if log_weights is None else torch.as_tensor(log_weights).to(start).clone()
        )
        names = (
            tuple(str(i) for i in range(len(start))) if class_names is None else tuple(map(str, class_names))
        )
        _check_parts(start, weights, names)
        self.inputs = InputLayer(start.shape[2]) if inputs is None else inputs
        if self.inputs.n_features != start.shape[2]:
            raise ConfigError(
                f"the input layer gives {self.inputs.n_features} features, centroids have {start.shape[2]}",
                where="DejaVidHead",
                fix="give the input layer that the centroids were computed behind",
            )
        if logits not in ("standardised", "per_step") or step_pattern not in ("no_diagonal", "classic"):
            raise ConfigError(
                f"logits={logits!r}, step_pattern={step_pattern!r}",
                where="DejaVidHead",
                fix="logits: standardised or per_step; step_pattern: no_diagonal or classic",
            )
        if not temperature > 0:
            raise ConfigError(f"temperature={temperature}", where="DejaVidHead", fix="give a value above 0")
        self.centroids = nn.Parameter(start)
        self.log_weights = nn.Parameter(weights)
        self.log_temperature = nn.Parameter(torch.tensor(float(np.log(temperature))))
        self.register_buffer("path_centroids", start.clone())
        self.register_buffer("path_log_weights", weights.clone())
        self.class_names = names
        self.step_pattern = step_pattern
        self.logits_rule = logits
        self.backend = backend
        self.fingerprints: dict[str, str] = {}
        self.metrics: dict[str, Any] = {}

    def forward(self, values: Tensor, offsets: Tensor, *, prepared: bool = False) -> Tensor:
        """Logits (N, C) of N packed TSEs.

        Args:
            values: (S, F) steps, end to end.
            offsets: (N + 1,) where each TSE begins.
            prepared: `values` have passed the input layer already.
        """
        bounds = torch.as_tensor(offsets)
        return self.logits(self.distances(values, bounds, prepared=prepared), bounds.diff())

    def distances(self, values: Tensor, offsets: Tensor, *, prepared: bool = False) -> Tensor:
        """Weighted DTW distances (N, C); arguments as for `forward`.

        In training mode the path is searched with the frozen copy and costed with the live parameters; in
        evaluation mode both are live.
        """
        frozen = {"path_centroids": self.path_centroids, "path_log_weights": self.path_log_weights}
        steps = torch.as_tensor(values)
        return weighted_dtw(
            steps if prepared else self.inputs(steps, offsets),
            offsets,
            self.centroids,
            self.log_weights,
            step_pattern=self.step_pattern,
            backend=self.backend,
            **(frozen if self.training else {}),
        )

    def logits(self, distances: Tensor, lengths: Tensor) -> Tensor:
        """Logits (N, C) from distances (N, C) and the samples' lengths (N,), by the head's rule."""
        if self.logits_rule == "per_step":
            n_cells = lengths.to(distances) + (self.centroids.shape[1] - 1)
            scores = -distances / n_cells.unsqueeze(1)
        else:
            scores = -standardise(distances)
        return scores / self.log_temperature.exp()

    @torch.no_grad()
    def predict_proba(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Softmin over the classes: probabilities (N, C), rows summing to 1."""
        return self.forward(values, offsets).softmax(1)

    @torch.no_grad()
    def refresh_path(self) -> None:
        """Copies the live parameters into the frozen ones."""
        self.path_centroids.copy_(self.centroids)
        self.path_log_weights.copy_(self.log_weights)

    def save(self, directory: Path | str) -> None:
        """Writes head.safetensors and head.json (the card) into `directory`, replacing a head there."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        blob = save_tensors(
            {
                "centroids": self.centroids.detach().cpu().contiguous(),
                "log_weights": self.log_weights.detach().cpu().contiguous(),
                "log_temperature": self.log_temperature.detach().cpu(),
                **{f"inputs.{name}": buffer.cpu() for name, buffer in self.inputs.named_buffers()},
            }
        )
        card = {
            "format": CARD_FORMAT,
            "schema": CARD_SCHEMA,
            "class_names": list(self.class_names),
            "shape": list(self.centroids.shape),
            "inputs": self.inputs.card(),
            "step_pattern": self.step_pattern,
            "logits": self.logits_rule,
            "temperature": float(self.log_temperature.detach().exp()),
            "fingerprints": self.fingerprints,
            "metrics": self.metrics,
            "versions": {
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            # Ties the card to its tensors: a crash between the two writes leaves a pair that does not load.
            "tensors_sha256": hashlib.sha256(blob).hexdigest(),
        }
        write_atomically(folder / "head.safetensors", blob)
        write_atomically(folder / "head.json", (json.dumps(card, indent=2) + os.linesep).encode())

    @classmethod
    def load(cls, directory: Path | str, *, backend: str = "auto") -> DejaVidHead:
        """Reads what `save` wrote. Nothing in the files is executed.

        Raises:
            ConfigError: no head there, a damaged one, or one of a newer schema.
        """
        folder = Path(directory)
        card = _read_card(folder)
        try:
            blob = (folder / "head.safetensors").read_bytes()
            tensors = load_tensors(blob)
        except (OSError, safetensors.SafetensorError) as error:
            raise _unreadable(folder / "head.safetensors", str(error)) from None
        if hashlib.sha256(blob).hexdigest() != card["tensors_sha256"]:
            raise _unreadable(folder / "head.safetensors", "its bytes are not those the card was written for")
        head = cls(
            tensors["centroids"],
            tensors["log_weights"],
            step_pattern=card["step_pattern"],
            class_names=card["class_names"],
            inputs=InputLayer.from_card(card["inputs"], tensors),
            logits=card["logits"],
            backend=backend,
        )
        head.log_temperature.data.copy_(tensors["log_temperature"])
        head.fingerprints = dict(card["fingerprints"])
        head.metrics = dict(card["metrics"])
        return head.eval()


def standardise(distances: Tensor) -> Tensor:
    """(x - mean) / std over axis 1, with C - 1 degrees of freedom; 0 where the row is constant."""
    if distances.shape[1] == 1:
        return torch.zeros_like(distances)
    centered = distances - distances.mean(1, keepdim=True)
    constant = (distances == distances[:, :1]).all(1, keepdim=True)
    # Replaced before the square root, whose gradient at 0 is infinite and would come through the mask as NaN.
    spread = distances.masked_fill(constant, 0.0) + constant * torch.arange(distances.shape[1]).to(distances)
    return (centered / spread.std(1, keepdim=True)).masked_fill(constant, 0.0)


def _check_parts(centroids: Tensor, log_weights: Tensor, class_names: tuple[str, ...]) -> None:
    if centroids.ndim != 3 or 0 in centroids.shape or log_weights.shape != centroids.shape:
        raise ConfigError(
            f"centroids have the shape {tuple(centroids.shape)}, log_weights {tuple(log_weights.shape)}",
            where="DejaVidHead",
            fix="give both as (C, Tc, F) with no empty axis",
        )
    if not bool(torch.isfinite(centroids).all() and torch.isfinite(log_weights).all()):
        raise ConfigError(
            "centroids or log_weights are not finite", where="DejaVidHead", fix="look at their source"
        )
    if len(class_names) != len(centroids) or len(set(class_names)) != len(class_names):
        raise ConfigError(
            f"{len(class_names)} names ({len(set(class_names))} different) for {len(centroids)} classes",
            where="DejaVidHead",
            fix="give one different name per class",
        )


def _read_card(folder: Path) -> Mapping[str, Any]:
    path = folder / "head.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from None
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise _unreadable(path, "it is not the card of a head")
    if card.get("schema") != CARD_SCHEMA:
        raise ConfigError(
            f"the head has schema {card.get('schema')}; this version reads {CARD_SCHEMA}",
            where=str(path),
            fix="use the version of dejavid that wrote it",
        )
    return card


def _unreadable(path: Path, why: str) -> ConfigError:
    return ConfigError(f"no readable head: {why}", where=str(path), fix="train one: dejavid train")
