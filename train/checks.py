"""What training refuses before it starts."""

from __future__ import annotations

from ..config import TrainSection
from ..errors import ConfigError
from .data import Samples
from .head import DejaVidHead


def check_fit(head: DejaVidHead, train: Samples, val: Samples | None, options: TrainSection) -> None:
    """Refuses samples that the head cannot be trained or measured on.

    Raises:
        ConfigError: an empty split, other features or labels than the head's, a class without samples, one
            class, or options that do not go together.
    """
    n_classes, n_features = len(head.centroids), head.inputs.n_features_in
    for name, samples in (("training", train), ("validation", val)):
        if samples is None:
            continue
        if len(samples.labels) == 0:
            raise ConfigError(
                f"the {name} split is empty", where="train", fix="look at the manifest's split column"
            )
        if samples.n_features != n_features:
            raise ConfigError(
                f"the {name} TSEs have {samples.n_features} features, the head has {n_features}",
                where="train",
                fix="compute the centroids from the same store",
            )
        low, high = int(samples.labels.min()), int(samples.labels.max())
        if low < 0 or high >= n_classes:
            raise ConfigError(
                f"{name} labels run from {low} to {high}, the head has {n_classes} classes",
                where="train",
                fix="give positions in head.class_names",
            )
    missing = sorted(set(range(n_classes)) - set(train.labels.tolist()))
    if missing:
        names = ", ".join(head.class_names[i] for i in missing[:10])
        raise ConfigError(
            f"{len(missing)} classes have no training sample: {names}",
            where="the training split",
            fix="add training videos of these classes, or take the classes out of the manifest",
        )
    if n_classes == 1:
        raise ConfigError("there is one class only", where="train", fix="a classifier needs at least two")
    if n_classes == 2 and head.logits_rule == "standardised":
        raise ConfigError(
            "standardised logits of two classes are always +-0.7071: nothing can be learned from them",
            where="train.logits",
            fix="--set train.logits=per_step",
        )
    needs = {"patience": options.patience is not None, "calibrate": options.calibrate}
    for name in (name for name, given in needs.items() if given and val is None):
        raise ConfigError(
            f"{name} needs videos that are held out",
            where=f"train.{name}",
            fix="--set train.holdout=0.1",
        )
