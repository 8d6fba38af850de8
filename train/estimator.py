"""The head as a scikit-learn classifier of multivariate time series of unequal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..config import CentroidsSection, TrainSection, parse_config
from ..devices import device_of
from ..errors import ConfigError, MissingDependencyError
from .centroids import fit_centroids
from .data import PackedSamples, hold_out
from .loop import train_head

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d
except ImportError as error:
    raise MissingDependencyError(
        f"scikit-learn cannot be imported ({error})",
        where="dejavid.train.DejaVidClassifier",
        fix="pip install 'dejavid[baselines]'",
    ) from None

Array = np.ndarray[Any, Any]

_CENTROIDS = CentroidsSection()
_TRAIN = TrainSection()


class DejaVidClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Weighted, diagonal-free DTW to one learned centroid per class.

    Args:
        n_steps: steps of a centroid (Tc).
        layout: how `X` is laid out. "time_first": a list of (T_i, F) arrays, or one array (N, T, F) whose
            shorter series end in rows of NaN (as in tslearn). "channels_first": a list of (F, T_i) arrays, or
            one array (N, F, T) (as in aeon). An array of two axes, (N, T), holds univariate series in both.
        random_state: seed of the choice of DBA samples, of initial weights and of the order of training.
        verbose: report progress to standard error.

    The other arguments are the keys of the `centroids` and `train` sections of the configuration, with their
    defaults.

    Attributes:
        classes_: (C,) the labels, sorted.
        head_: the trained `DejaVidHead`.
        history_: one record per epoch.
        n_iter_: the most updates that DBA did for a class; `max_iter` bounds it.
        n_features_in_: F (for (N, T) arrays T, which is what scikit-learn calls features).

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> up = [np.linspace(0, 1, t)[:, None] for t in (6, 9, 12)]
        >>> down = [tse[::-1] for tse in up]
        >>> model = DejaVidClassifier(n_steps=4, random_state=0).fit(up + down, ["up"] * 3 + ["down"] * 3)
        >>> model.predict([np.linspace(0, 1, 7)[:, None]]).tolist()
        ['up']
    """

    def __init__(
        self,
        *,
        n_steps: int = _CENTROIDS.length,
        max_per_class: int = _CENTROIDS.max_per_class,
        max_iter: int = _CENTROIDS.max_iter,
        tol: float | None = _CENTROIDS.tol,
        init: str = _CENTROIDS.init,
        update: str = _CENTROIDS.update,
        resampled: bool = _CENTROIDS.resampled,
        standardise: bool = _CENTROIDS.standardise,
        position: float = _CENTROIDS.position,
        epochs: int = _TRAIN.epochs,
        lr: float = _TRAIN.lr,
        lr_ratio: float = _TRAIN.lr_ratio,
        weight_decay: float = _TRAIN.weight_decay,
        log_weight_decay: float | None = _TRAIN.log_weight_decay,
        warmup_epochs: int = _TRAIN.warmup_epochs,
        clip_norm: float | None = _TRAIN.clip_norm,
        label_smoothing: float = _TRAIN.label_smoothing,
        tie_weights: bool = _TRAIN.tie_weights,
        batch_size: int = _TRAIN.batch_size,
        bucket_by_length: bool = _TRAIN.bucket_by_length,
        shuffle_seed: int | None = _TRAIN.shuffle_seed,
        learn: str = _TRAIN.learn,
        init_log_weights: str = _TRAIN.init_log_weights,
        logits: str = _TRAIN.logits,
        temperature: float | None = _TRAIN.temperature,
        lr_temperature: float = _TRAIN.lr_temperature,
        step_pattern: str = _TRAIN.step_pattern,
        refresh_every: int = _TRAIN.refresh_every,
        holdout: float = _TRAIN.holdout,
        patience: int | None = _TRAIN.patience,
        calibrate: bool = _TRAIN.calibrate,
        backend: str = _TRAIN.backend,
        device: str = _TRAIN.device,
        layout: str = "time_first",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_steps = n_steps
        self.max_per_class = max_per_class
        self.max_iter = max_iter
        self.tol = tol
        self.init = init
        self.update = update
        self.resampled = resampled
        self.standardise = standardise
        self.position = position
        self.epochs = epochs
        self.lr = lr
        self.lr_ratio = lr_ratio
        self.weight_decay = weight_decay
        self.log_weight_decay = log_weight_decay
        self.warmup_epochs = warmup_epochs
        self.clip_norm = clip_norm
        self.label_smoothing = label_smoothing
        self.tie_weights = tie_weights
        self.batch_size = batch_size
        self.bucket_by_length = bucket_by_length
        self.shuffle_seed = shuffle_seed
        self.learn = learn
        self.init_log_weights = init_log_weights
        self.logits = logits
        self.temperature = temperature
        self.lr_temperature = lr_temperature
        self.step_pattern = step_pattern
        self.refresh_every = refresh_every
        self.holdout = holdout
        self.patience = patience
        self.calibrate = calibrate
        self.backend = backend
        self.device = device
        self.layout = layout
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> DejaVidClassifier:
        """Computes the centroids and trains the head.

        Args:
            X: N time series, see `layout`.
            y: N labels of at least two classes.

        Raises:
            ConfigError: series that do not fit together, NaN, one class, or an impossible option.
        """
        values, offsets = self._packed(X, fitting=True)
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        check_consistent_length(offsets[1:], labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ConfigError(
                f"y has 1 class, {self.classes_[0]!r}", where="fit", fix="a classifier needs at least two"
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        section, options = self._sections()
        device = device_of(self.device)
        everything = PackedSamples(torch.from_numpy(values).to(device), offsets, targets)
        train, val = everything, None
        if self.holdout:
            kept, held = hold_out(everything.labels, self.holdout, seed)
            train, val = everything.subset(kept), everything.subset(held)
        names = [str(position) for position in range(len(self.classes_))]
        centroids = fit_centroids(
            train.values,
            train.offsets,
            train.labels.tolist(),
            class_names=names,
            step_pattern=options.step_pattern,
            seed=seed,
            backend=options.backend,
            progress=self.verbose,
            **section.model_dump(),
        )
        self.head_ = centroids.head(step_pattern=options.step_pattern, logits=options.logits)
        report = train_head(
            self.head_,
            train,
            val,
            options=options,
            seed=seed,
            progress=self.verbose,
        )
        self.history_ = report.history
        self.n_iter_ = max(1, *centroids.n_updates)
        return self

    def predict_proba(self, X: Any) -> Array:
        """(N, C) softmin probabilities, columns in the order of `classes_`."""
        check_is_fitted(self, "head_")
        values, offsets = self._packed(X, fitting=False)
        device = self.head_.centroids.device
        probabilities = self.head_.predict_proba(
            torch.from_numpy(values).to(device), torch.from_numpy(offsets)
        )
        doubles = probabilities.double()
        result: Array = (doubles / doubles.sum(1, keepdim=True)).cpu().numpy()
        return result

    def predict(self, X: Any) -> Array:
        """(N,) labels."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: Array = self.classes_[best]
        return labels

    def _sections(self) -> tuple[CentroidsSection, TrainSection]:
        """The parameters as the configuration knows them, checked."""
        given = self.get_params() | {"length": self.n_steps}
        centroids, train = (
            {key: value for key, value in given.items() if key in section.model_fields}
            for section in (CentroidsSection, TrainSection)
        )
        config = parse_config({"centroids": centroids, "train": train}, "DejaVidClassifier")
        return config.centroids, config.train

    def _packed(self, X: Any, *, fitting: bool) -> tuple[Array, Array]:
        tses, n_features_in = as_tses(X, self.layout)
        if fitting:
            self.n_features_in_ = n_features_in
        elif n_features_in != self.n_features_in_:
            name = type(self).__name__
            raise ConfigError(
                f"X has {n_features_in} features, but {name} is expecting "
                f"{self.n_features_in_} features as input",
                where="predict",
                fix="give series of the features it was fitted on",
            )
        offsets = np.concatenate([[0], np.cumsum([len(tse) for tse in tses])]).astype(np.int64)
        return np.concatenate(tses), offsets


def as_tses(X: Any, layout: str) -> tuple[list[Array], int]:
    """Time series in any of the usual layouts as a list of (T_i, F) float32 arrays, and `n_features_in_`.

    Raises:
        ConfigError: an unknown layout, no series, an empty one, unequal F, or values that are no finite
            numbers.
    """
    if layout not in ("time_first", "channels_first"):
        raise ConfigError(
            f"layout={layout!r}", where="DejaVidClassifier", fix="use time_first or channels_first"
        )
    if hasattr(X, "toarray") or hasattr(X, "__array__"):
        return _split_array(X, layout)
    if isinstance(X, Sequence) and len(X) and np.ndim(X[0]) == 1:
        return _split_array(np.asarray(X), layout)
    series = [_numbers(x, f"X[{index}]") for index, x in enumerate(X)]
    if not series:
        raise ConfigError("X holds 0 samples: no time series", where="X", fix="give at least one")
    if any(x.ndim != 2 for x in series):
        index = next(index for index, x in enumerate(series) if x.ndim != 2)
        raise ConfigError(
            f"a series has the shape {series[index].shape}",
            where=f"X[{index}]",
            fix="give two axes: time, features",
        )
    if layout == "channels_first":
        series = [x.T for x in series]
    return _checked(series), series[0].shape[1]


def _split_array(X: Any, layout: str) -> tuple[list[Array], int]:
    """The series of an array (N, T), (N, T, F) or (N, F, T)."""
    if hasattr(X, "toarray"):
        raise ConfigError("X is a sparse matrix, not dense data", where="X", fix="pass X.toarray()")
    array = _numbers(X, "X")
    if array.ndim == 2 and 0 not in array.shape:
        return _checked(list(array[:, :, None])), array.shape[1]
    if array.ndim != 3 or 0 in array.shape:
        # The wording that scikit-learn's own checks look for.
        axis = "feature" if array.ndim == 2 and len(array) else "sample"
        raise ConfigError(
            f"0 {axis}(s) (shape={array.shape}) while a minimum of 1 is required. Reshape your data",
            where="X",
            fix="give a list of (T, F) arrays, or one array of two or three axes",
        )
    if layout == "channels_first":
        array = array.transpose(0, 2, 1)
    # tslearn ends shorter series in rows of NaN.
    padding: Array = np.asarray(np.isnan(array).all(axis=2))[:, ::-1]
    lengths = array.shape[1] - padding.cumprod(axis=1).sum(axis=1)
    return _checked([x[:length] for x, length in zip(array, lengths, strict=True)]), array.shape[2]


def _numbers(x: Any, where: str) -> Array:
    array = np.asarray(x)
    if np.iscomplexobj(array):
        raise ConfigError("Complex data not supported", where=where, fix="give real numbers")
    try:
        return np.asarray(array, dtype=np.float32)
    except (TypeError, ValueError) as error:
        # scikit-learn asks for TypeError where an entry is no number at all, such as a dict.
        kind = TypeError if isinstance(error, TypeError) else ConfigError
        if kind is TypeError:
            raise TypeError(f"argument must be a string or a number: {error}") from None
        raise ConfigError(f"not numbers: {error}", where=where, fix="give arrays of numbers") from None


def _checked(series: list[Array]) -> list[Array]:
    for index, x in enumerate(series):
        if 0 in x.shape or x.shape[1] != series[0].shape[1]:
            raise ConfigError(
                f"a series has the shape {x.shape}; the first has {series[0].shape}",
                where=f"X[{index}]",
                fix="give series of at least one step and of one number of features",
            )
        if not np.isfinite(x).all():
            raise ConfigError(
                "a series holds NaN or infinity (inf)",
                where=f"X[{index}]",
                fix="fill gaps, or leave the series out",
            )
    return [np.ascontiguousarray(x) for x in series]
