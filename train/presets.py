"""Settings by name."""

from __future__ import annotations

from typing import Any

import yaml

# What the published code does, as `--set` takes it: the golden runs follow these settings to rounding.
PARITY: tuple[str, ...] = (
    "centroids.length=8",
    "centroids.max_per_class=50",
    "centroids.max_iter=100",
    "centroids.tol=null",
    "centroids.init=medoid",
    "centroids.update=mean",
    "centroids.resampled=true",
    "centroids.standardise=false",
    "centroids.position=0",
    "train.epochs=36",
    "train.lr=0.03",
    "train.lr_ratio=0.3333333333333333",
    "train.weight_decay=0.01",
    "train.log_weight_decay=null",
    "train.warmup_epochs=0",
    "train.clip_norm=null",
    "train.label_smoothing=0",
    "train.tie_weights=false",
    "train.batch_size=384",
    "train.bucket_by_length=false",
    "train.shuffle_seed=0",
    "train.learn=full",
    "train.init_log_weights=normal",
    "train.logits=standardised",
    "train.temperature=1",
    "train.lr_temperature=0",
    "train.step_pattern=no_diagonal",
    "train.refresh_every=1",
    "train.holdout=0",
    "train.patience=null",
    "train.calibrate=false",
)


def parity_parameters() -> dict[str, Any]:
    """`PARITY` as parameters of `DejaVidClassifier`."""
    values = {
        key.partition(".")[2]: yaml.safe_load(text)
        for key, _, text in (item.partition("=") for item in PARITY)
    }
    values["n_steps"] = values.pop("length")
    return values
