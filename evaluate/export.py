"""A head for others: its tensors, a model card and, for TSEs of one length, a torch.export program."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import pad

from ..errors import ConfigError
from ..files import write_atomically
from ..kernels.torch_ops import network
from ..train import DejaVidHead
from .recipe import EXTRACT_FILE

CARD_FILE, PROGRAM_FILE = "README.md", "head.pt2"
HEAD_FILES = ("head.safetensors", "head.json")


class FixedLengthHead(nn.Module):
    """A head in plain PyTorch for TSEs of one length: what `torch.export` can take.

    Args:
        head: the head.
        n_steps: T of every TSE.
    """

    gain: Tensor
    base: Tensor
    centroids: Tensor
    weights: Tensor

    def __init__(self, head: DejaVidHead, n_steps: int) -> None:
        super().__init__()
        self.n_steps = n_steps
        self.head = head.eval()
        self._first, self._stop = head.inputs.columns
        self._n_added = head.inputs.n_features - (self._stop - self._first)
        offsets = torch.tensor([0, n_steps])
        shape = n_steps, head.inputs.n_features_in
        # The input layer is affine in each step, so two points tell all of it.
        base = head.inputs(torch.zeros(shape), offsets).clone()
        self.register_buffer("base", base)
        self.register_buffer("gain", head.inputs(torch.ones(shape), offsets) - base)

    def forward(self, tses: Tensor) -> Tensor:
        """Logits (N, C) of TSEs (N, T, F), F as in the store."""
        chosen = pad(tses[..., self._first : self._stop], (0, self._n_added))
        steps = (self.base + self.gain * chosen)[:, None]
        weights, centroids = self.head.log_weights.exp(), self.head.centroids
        cost = [
            (weights[:, t, None] * (centroids[:, t, None] - steps).abs()).sum(-1)
            for t in range(centroids.shape[1])
        ]
        lengths = torch.full((tses.shape[0],), self.n_steps)
        distances = network(torch.stack(cost, 2), lengths, self.head.step_pattern)
        return self.head.logits(distances, lengths)


@dataclass(frozen=True)
class HeadExport:
    """What `export_head` wrote.

    Attributes:
        paths: the files.
        program: "for T steps", or why there is no torch.export program.
    """

    paths: tuple[Path, ...]
    program: str


def export_head(head_dir: Path, into: Path, *, n_steps: int | None = None) -> HeadExport:
    """Copies a head into a new folder, with a model card and, if asked for, a torch.export program.

    The card takes its numbers from the results.json beside the head's folder, if there is one.

    Args:
        head_dir: folder of the head.
        into: folder to make.
        n_steps: length of the TSEs of the program; None: no program.

    Raises:
        ConfigError: no head, the destination exists, or a length below 1.
    """
    head = DejaVidHead.load(head_dir, backend="torch")
    if into.exists():
        raise ConfigError(
            "the destination exists", where=str(into), fix="name a new folder, or delete it first"
        )
    if n_steps is not None and n_steps < 1:
        raise ConfigError(f"{n_steps} steps", where="--steps", fix="give a length of at least 1")
    into.mkdir(parents=True)
    files = [name for name in (*HEAD_FILES, EXTRACT_FILE) if (head_dir / name).exists()]
    for name in files:
        shutil.copyfile(head_dir / name, into / name)
    write_atomically(into / CARD_FILE, model_card(head, _results(head_dir)).encode())
    program = "not asked for"
    if n_steps is not None:
        program = _write_program(head, n_steps, into / PROGRAM_FILE)
        files += [PROGRAM_FILE] if (into / PROGRAM_FILE).exists() else []
    return HeadExport(tuple(into / name for name in (*files, CARD_FILE)), program)


def _write_program(head: DejaVidHead, n_steps: int, path: Path) -> str:
    example = (torch.zeros(2, n_steps, head.inputs.n_features_in),)
    batch = {0: torch.export.Dim("batch")}
    try:
        with torch.no_grad():
            program = torch.export.export(FixedLengthHead(head, n_steps), example, dynamic_shapes=(batch,))
        torch.export.save(program, path)
    except Exception as error:  # any of PyTorch's many: the head itself is exported all the same
        return f"torch.export failed: {type(error).__name__}: {str(error).splitlines()[0]}"
    return f"for {n_steps} steps"


def model_card(head: DejaVidHead, results: Mapping[str, Any] | None) -> str:
    """A model card: YAML front matter as model hubs read it, then what a person needs.

    Args:
        results: the contents of results.json.
    """
    n_classes, n_steps, n_features = head.centroids.shape
    front: dict[str, Any] = {
        "library_name": "dejavid",
        "pipeline_tag": "video-classification",
        "tags": ["video-classification", "dynamic-time-warping", "dejavid"],
    }
    lines = [
        "# DejaVid head",
        "",
        f"{n_classes} classes, centroids of {n_steps} steps x {n_features} features, step pattern"
        f" `{head.step_pattern}`, logits `{head.logits_rule}`.",
        "",
        "It classifies temporal sequences of embeddings (TSEs) of one frozen encoder; `extract.json` says"
        " which, and how videos are cut. `dejavid predict` refuses features made otherwise.",
    ]
    if results is not None:
        numbers = results["methods"]["dejavid"]
        counts = f"{numbers['n_correct']} of {numbers['n_denominator']} videos of split {results['split']!r}"
        low, high = (100 * edge for edge in numbers["top1_interval"])
        lines += [
            "",
            "## Evaluation",
            "",
            f"Top-1 {100 * numbers['top1']:.1f} % ({counts}, 95 % interval {low:.1f} - {high:.1f}),"
            f" top-5 {100 * numbers['top5']:.1f} %, mean over classes {100 * numbers['mean_class']:.1f} %.",
        ]
        metrics = [
            {"type": "accuracy", "name": name, "value": numbers[key]}
            for name, key in (("top-1", "top1"), ("top-5", "top5"), ("mean class", "mean_class"))
        ]
        result = {
            "task": {"type": "video-classification"},
            "dataset": {"name": f"split {results['split']}", "type": "custom"},
            "metrics": metrics,
        }
        front["model-index"] = [{"name": "DejaVid head", "results": [result]}]
    lines += ["", "## Use", "", "```console", "$ dejavid predict THIS_FOLDER video.mp4", "```", ""]
    lines += [
        "Fingerprints: " + ", ".join(f"{key} `{value}`" for key, value in head.fingerprints.items()),
        "",
    ]
    lines += ["Classes: " + ", ".join(f"`{name}`" for name in head.class_names), ""]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n" + "\n".join(lines)


def _results(head_dir: Path) -> dict[str, Any] | None:
    """The evaluation of this very head, if its run has one."""
    path = head_dir.parent / "results.json"
    try:
        results = dict(json.loads(path.read_text(encoding="utf-8")))
        card = json.loads((head_dir / "head.json").read_text(encoding="utf-8"))
        return results if results["fingerprints"] == card["fingerprints"] else None
    except (OSError, ValueError, KeyError):
        return None
