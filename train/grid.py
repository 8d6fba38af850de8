"""Many heads from one set of TSEs: every combination of some keys, trained on what is loaded once."""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint import FILE
from ..config import Config, dump_config, parse_config
from ..errors import ConfigError
from ..files import write_atomically
from ..fingerprints import fingerprint
from .centroids import Centroids, fit_centroids
from .data import Samples, hold_out
from .dba import reservoir
from .loop import train_head

_HOLDOUT = 0.2
_SECTIONS = ("centroids", "train", "run")


@dataclass(frozen=True)
class GridPoint:
    """One trained combination.

    Attributes:
        changes: section.key -> value.
        folder: where its head is.
        epoch: whose parameters the head has.
        val_accuracy, val_loss, val_correct: on the held-out part of the training split.
        train_accuracy: on the rest of it.
    """

    changes: dict[str, Any]
    folder: Path
    epoch: int
    val_accuracy: float
    val_loss: float
    val_correct: int
    train_accuracy: float


def parse_grid(items: Iterable[str]) -> dict[str, list[Any]]:
    """Reads `section.key=value,value,...` strings; the values are YAML.

    Raises:
        ConfigError: no such form, a repeated key, or a section that training does not depend on.
    """
    grid: dict[str, list[Any]] = {}
    for item in items:
        key, equals, text = item.partition("=")
        section = key.partition(".")[0]
        if not equals or section not in _SECTIONS or key in grid:
            raise ConfigError(
                f"not a new SECTION.KEY=VALUE,VALUE of {', '.join(_SECTIONS)}: {item!r}",
                where="--grid",
                fix="for example --grid train.lr=0.03,0.1 --grid centroids.length=8,16",
            )
        try:
            grid[key] = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError as error:
            raise ConfigError(
                f"the values are no YAML: {text!r}", where=f"--grid {key}", fix=str(error)
            ) from None
    return grid


def train_grid(
    samples: Samples,
    class_names: Sequence[str],
    grid: Mapping[str, Sequence[Any]],
    *,
    config: Config,
    out_dir: Path,
    fingerprints: Mapping[str, str] | None = None,
    progress: bool = False,
) -> list[GridPoint]:
    """Trains one head per combination and ranks them on a held-out part of the training split.

    The TSEs are loaded once and split once; combinations that agree in what centroids depend on share them.
    A combination that is finished already is not trained again, one that was interrupted is resumed.
    Writes `out_dir`/<fingerprint>/ per head, and grid.json and grid.csv, best first.

    Args:
        samples: the training split; `train.holdout` of it, or 0.2 where that is 0, is held out.
        class_names: C names.
        grid: section.key -> values.
        config: everything else.
        fingerprints: of what the samples are; a combination trained on others is an error.

    Raises:
        ConfigError: a key or value that is wrong, before anything is trained.
    """
    configs = [(changes, _with(config, changes)) for changes in _combinations(grid)]
    kept, held = hold_out(samples.labels, config.train.holdout or _HOLDOUT, config.run.seed)
    trainer = _Trainer(
        samples.subset(kept), samples.subset(held), tuple(class_names), dict(fingerprints or {})
    )
    points = []
    for number, (changes, point) in enumerate(configs, 1):
        if progress:
            shown = ", ".join(f"{key}={value}" for key, value in changes.items())
            print(f"head {number}/{len(configs)}: {shown}", file=sys.stderr)
        points.append(trainer.train(changes, point, out_dir, progress))
    points.sort(key=lambda point: (-point.val_correct, point.val_loss))
    _write_table(points, out_dir)
    return points


class _Trainer:
    """What the combinations share: the samples, and centroids that they agree on."""

    def __init__(
        self, train: Samples, val: Samples, class_names: tuple[str, ...], fingerprints: dict[str, str]
    ) -> None:
        self._train, self._val, self._class_names = train, val, class_names
        self._fingerprints = fingerprints
        self._centroids: dict[str, Centroids] = {}

    def train(self, changes: dict[str, Any], config: Config, out_dir: Path, progress: bool) -> GridPoint:
        options, seed = config.train, config.run.seed
        plain = dump_config(config)
        centroid_facts = {"centroids": plain["centroids"], "step_pattern": options.step_pattern, "seed": seed}
        facts = {"train": plain["train"], **centroid_facts, **self._fingerprints}
        key = fingerprint(centroid_facts)
        if key not in self._centroids:
            self._centroids[key] = self._fit(config)
        head = self._centroids[key].head(step_pattern=options.step_pattern, logits=options.logits)
        head.fingerprints = {**self._fingerprints, "head_fp": fingerprint(facts)}
        folder = out_dir / fingerprint(facts)[:12]
        report = train_head(
            head,
            self._train,
            self._val,
            options=options,
            seed=seed,
            out_dir=folder,
            resume=(folder / FILE).exists(),
            progress=progress,
        )
        if report.kept_epoch is None:
            raise ConfigError("nothing was trained", where="train.epochs", fix="train for at least one epoch")
        record = report.history[report.kept_epoch]
        return GridPoint(
            changes,
            folder,
            report.kept_epoch,
            record["val_accuracy"],
            record["val_loss"],
            record["val_correct"],
            record["train_accuracy"],
        )

    def _fit(self, config: Config) -> Centroids:
        section, seed, labels = config.centroids, config.run.seed, self._train.labels
        kept = reservoir(labels.tolist(), section.max_per_class, seed)
        chosen = labels.new_tensor([position for positions in kept.values() for position in positions])
        values, offsets = self._train.take(chosen)
        return fit_centroids(
            values,
            offsets,
            labels[chosen].tolist(),
            class_names=self._class_names,
            step_pattern=config.train.step_pattern,
            seed=seed,
            backend=config.train.backend,
            **section.model_dump(),
        )


def _combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _with(config: Config, changes: Mapping[str, Any]) -> Config:
    data = dump_config(config)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        data[section][name] = value
    return parse_config(data, "--grid")


def _write_table(points: Sequence[GridPoint], out_dir: Path) -> None:
    rows = [asdict(point) | {"folder": point.folder.name} for point in points]
    write_atomically(out_dir / "grid.json", json.dumps(rows, indent=2).encode())
    flat = [row.pop("changes") | row for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    write_atomically(out_dir / "grid.csv", text.getvalue().encode())
