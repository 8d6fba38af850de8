"""Test accuracy on four public sets of multivariate time series, beside the usual baselines.

    python benchmarks/accuracy.py [--seeds 3] [--variants project reference ...] [--cv] [--out FILE.json]

JV: JapaneseVowels, 9 speakers, 270 / 370 series of 7..29 steps, 12 features. JVREV: the same with
    time-reversed copies
as 9 more classes, which nothing that ignores order can tell apart. BM: BasicMotions, 4 classes, 40 / 40
series of 100 steps, 6 features. DIGITS: scikit-learn's 8 x 8 digits read row by row, 1000 / 797, in the order
they come in (the test writers are others). Nothing is chosen on test data: --cv prints what choices were made
by, the accuracy of 4-fold cross-validation inside the training splits (for DIGITS in contiguous blocks, that
is, on other writers).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dejavid.train import DejaVidClassifier
from dejavid.train.dba import resample
from dejavid.train.presets import parity_parameters

Array = NDArray[Any]
DATA = Path(__file__).parents[1] / "tests" / "golden" / "dejavid" / "trajectory"
FOLDS = 4


@dataclass(frozen=True)
class Problem:
    """Training and test series (T_i, F) with integer labels; `blocks`: fold of every training series."""

    train: list[Array]
    y_train: Array
    test: list[Array]
    y_test: Array
    blocks: Array


def load_problems() -> dict[str, Problem]:
    jv, bm = _bundled("JV"), _bundled("BM")
    digits = load_digits()
    rows = list(digits.images.astype(np.float32))
    return {
        "JV": jv,
        "JVREV": _with_reversed(jv),
        "BM": bm,
        "DIGITS": Problem(
            rows[:1000],
            digits.target[:1000],
            rows[1000:],
            digits.target[1000:],
            np.arange(1000) * FOLDS // 1000,
        ),
    }


def _bundled(name: str) -> Problem:
    data = np.load(DATA / f"{name}_data.npz")
    series = np.split(data["samples"], np.cumsum(data["lens"])[:-1])
    train, test = ([series[i] for i in data[part]] for part in ("train", "test"))
    return Problem(
        train,
        data["labels"][data["train"]],
        test,
        data["labels"][data["test"]],
        np.arange(len(train)) % FOLDS,
    )


def _with_reversed(problem: Problem) -> Problem:
    n_classes = problem.y_train.max() + 1

    def both(series: list[Array]) -> list[Array]:
        return series + [x[::-1].copy() for x in series]

    return Problem(
        both(problem.train),
        np.concatenate([problem.y_train, problem.y_train + n_classes]),
        both(problem.test),
        np.concatenate([problem.y_test, problem.y_test + n_classes]),
        np.tile(problem.blocks, 2),
    )


def mean_pool(series: list[Array]) -> Array:
    return np.stack([x.mean(0) for x in series])


def stretched(series: list[Array], length: int) -> Array:
    """(N, length, F), linearly resampled."""
    return np.stack([resample(torch.tensor(x), length).numpy() for x in series])


def mean_pool_nearest_centroid(p: Problem, seed: int) -> Array:
    return NearestCentroid().fit(mean_pool(p.train), p.y_train).predict(mean_pool(p.test))


def mean_pool_regression(p: Problem, seed: int) -> Array:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return model.fit(mean_pool(p.train), p.y_train).predict(mean_pool(p.test))


def resampled_regression(p: Problem, seed: int) -> Array:
    train, test = (stretched(series, 8).reshape(len(series), -1) for series in (p.train, p.test))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return model.fit(train, p.y_train).predict(test)


def nearest_neighbour_dtw(p: Problem, seed: int) -> Array:
    from tslearn.metrics import cdist_dtw

    return p.y_train[np.asarray(cdist_dtw(p.test, p.train)).argmin(1)]


def minirocket(p: Problem, seed: int) -> Array:
    """MiniRocket (Dempster, Schmidt and Webb, KDD 2021) on series stretched to one length, then ridge."""
    length = max(9, *(len(x) for x in p.train + p.test))
    transform = MiniRocket(stretched(p.train, length), seed)
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-3, 3, 10)))
    model.fit(transform(stretched(p.train, length)), p.y_train)
    return model.predict(transform(stretched(p.test, length)))


class MiniRocket:
    """84 kernels of length 9 and weights {-1, 2}, dilated; a feature is the share of outputs above a bias."""

    N_FEATURES = 10_000

    def __init__(self, train: Array, seed: int) -> None:
        random = np.random.default_rng(seed)
        _, length, n_channels = train.shape
        self.triples = [(a, b, c) for a in range(9) for b in range(a + 1, 9) for c in range(b + 1, 9)]
        per_kernel = self.N_FEATURES // len(self.triples)
        exponents = np.linspace(0, np.log2((length - 1) / 8), min(per_kernel, 32))
        self.dilations, counts = np.unique(np.floor(2**exponents).astype(int), return_counts=True)
        quantiles = iter(np.arange(1, 2 * self.N_FEATURES) * ((5**0.5 + 1) / 2) % 1)
        self.plan = []
        for dilation, count in zip(self.dilations, np.ceil(counts * per_kernel / counts.sum()), strict=True):
            for triple in self.triples:
                size = min(n_channels, 2 ** int(random.uniform(0, np.log2(min(n_channels, 9) + 1))))
                channels = random.choice(n_channels, size, replace=False)
                example = train[random.integers(len(train))][None]
                output = self._convolve(example, dilation, triple, channels)
                biases = np.quantile(output, [next(quantiles) for _ in range(int(count))])
                self.plan.append((dilation, triple, channels, biases))

    def __call__(self, series: Array) -> Array:
        features = []
        for number, (dilation, triple, channels, biases) in enumerate(self.plan):
            output = self._convolve(series, dilation, triple, channels)
            if number % 2:  # every other kernel sees whole windows only
                output = output[:, 4 * dilation : output.shape[1] - 4 * dilation]
            features.append((output[:, :, None] > biases).mean(1))
        return np.concatenate(features, axis=1).astype(np.float32)

    @staticmethod
    def _convolve(series: Array, dilation: int, triple: tuple[int, int, int], channels: Array) -> Array:
        x = series[:, :, channels].sum(2)
        padded = np.pad(x, ((0, 0), (4 * dilation, 4 * dilation)))
        taps = [padded[:, tap * dilation : tap * dilation + x.shape[1]] for tap in range(9)]
        return 3 * sum(taps[tap] for tap in triple) - sum(taps)


BASELINES: dict[str, Callable[[Problem, int], Array]] = {
    "mean-pool, nearest centroid": mean_pool_nearest_centroid,
    "mean-pool, logistic regression": mean_pool_regression,
    "resampled to 8, logistic regression": resampled_regression,
    "1-NN DTW": nearest_neighbour_dtw,
    "MiniRocket": minirocket,
}

_REFERENCE = parity_parameters() | {"batch_size": 32}
VARIANTS: dict[str, dict[str, Any]] = {
    "project": {},
    "reference": _REFERENCE,
    "reference, zero log-weights": _REFERENCE | {"init_log_weights": "zeros"},
    "no position": {"position": 0.0},
    "position 0.1": {"position": 0.1},
    "position 1": {"position": 1.0},
    "features as they are": {"standardise": False},
    "standardised logits": {"logits": "standardised"},
    "temperature learned": {"lr_temperature": 0.03},
    "no label smoothing": {"label_smoothing": 0.0},
    "label smoothing 0.2": {"label_smoothing": 0.2},
    "8 centroid steps": {"n_steps": 8},
    "24 centroid steps": {"n_steps": 24},
    "lr 0.03": {"lr": 0.03},
    "lr 0.1": {"lr": 0.1},
    "centroid lr / 3": {"lr_ratio": 1 / 3},
    "centroid lr x 3": {"lr_ratio": 3.0},
    "normal log-weights": {"init_log_weights": "normal"},
    "log-weight decay 0.3": {"log_weight_decay": 0.3},
    "log-weight decay 1": {"log_weight_decay": 1.0},
    "tied weights": {"tie_weights": True},
    "early stopping": {"holdout": 0.2, "patience": 5},
    "diagonal": {"step_pattern": "classic"},
    "batch 384": {"batch_size": 384},
    "median DBA": {"update": "median"},
    "DBA not resampled": {"resampled": False},
    "centroids only": {"learn": "centroids"},
    "weights only": {"learn": "weights"},
}


def dejavid(p: Problem, seed: int, parameters: dict[str, Any]) -> Array:
    return (
        DejaVidClassifier(**parameters, random_state=seed, device="cpu")
        .fit(p.train, p.y_train)
        .predict(p.test)
    )


def folds(p: Problem) -> list[Problem]:
    """Cross-validation inside the training split; four times over where it is small."""
    parts = []
    for repeat in range(4 if len(p.train) < 100 else 1):
        blocks = p.blocks if repeat == 0 else np.random.default_rng(repeat).permutation(p.blocks)
        for fold in range(FOLDS):
            inside, outside = np.flatnonzero(blocks != fold), np.flatnonzero(blocks == fold)
            train, test = ([p.train[i] for i in part] for part in (inside, outside))
            parts.append(Problem(train, p.y_train[inside], test, p.y_train[outside], blocks[inside]))
    return parts


def accuracy(p: Problem, predict: Callable[[Problem, int], Array], seeds: int) -> list[float]:
    return [100 * float((predict(p, seed) == p.y_test).mean()) for seed in range(seeds)]


def show(name: str, values: dict[str, float], cv: dict[str, float] | None) -> None:
    line = f"{name:36s}" + "".join(f"{value:7.1f}" for value in values.values())
    line += f"{np.mean(list(values.values())):8.2f}"
    if cv:
        line += (
            "   cv" + "".join(f"{value:7.1f}" for value in cv.values()) + f"{np.mean(list(cv.values())):8.2f}"
        )
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS)[:3])
    parser.add_argument("--all", action="store_true", help="every variant")
    parser.add_argument(
        "--cv", action="store_true", help="also cross-validate the variants in the training splits"
    )
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problems = load_problems()
    print(
        f"{'top-1 %, mean over ' + str(arguments.seeds) + ' seeds':36s}"
        + "".join(f"{n:>7s}" for n in problems)
        + "    mean"
    )

    rows: dict[str, Any] = {}
    methods: dict[str, tuple[Callable[[Problem, int], Array], bool]] = {}
    if not arguments.no_baselines:
        methods |= {name: (method, False) for name, method in BASELINES.items()}
    for name in VARIANTS if arguments.all else arguments.variants:
        methods["DejaVid: " + name] = (
            lambda p, seed, name=name: dejavid(p, seed, VARIANTS[name]),
            arguments.cv,
        )
    for name, (predict, validate) in methods.items():
        began = time.process_time()
        runs = {problem: accuracy(p, predict, arguments.seeds) for problem, p in problems.items()}
        means = {problem: float(np.mean(values)) for problem, values in runs.items()}
        cv = None
        if validate:
            cv = {
                problem: float(np.mean([accuracy(fold, predict, 1)[0] for fold in folds(p)]))
                for problem, p in problems.items()
            }
        rows[name] = {"runs": runs, "means": means, "cv": cv, "cpu_s": time.process_time() - began}
        show(name, means, cv)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"seeds": arguments.seeds, "methods": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
