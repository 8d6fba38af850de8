"""DBA against the golden vectors, against tslearn, and at its edges."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from dejavid.errors import ConfigError
from dejavid.kernels import weighted_dtw
from dejavid.train import barycenter, fit_centroids
from dejavid.train.dba import find_barycenter, resample, reservoir

GOLDEN = Path(__file__).parents[1] / "golden" / "dejavid" / "dba"
CASES = sorted(GOLDEN.glob("*_mm[01].npz"))
PATTERNS = ("no_diagonal", "classic")


def golden(path):
    data = dict(np.load(path))
    bounds = np.concatenate([[0], np.cumsum(data["lens"])])
    data["tses"] = [data["samples"][a:b] for a, b in pairwise(bounds)]
    return data


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden_resampling_medoid_and_updates(path, backend):
    data = golden(path)
    length = int(data["target_length"])
    for tse, expected in zip(data["tses"], data["resampled"], strict=True):
        np.testing.assert_allclose(resample(torch.tensor(tse), length), expected, atol=5e-5)
    for n_updates in (1, 2, 10, 100):
        found = find_barycenter(
            data["tses"],
            length=length,
            max_iter=n_updates,
            tol=None,
            step_pattern=PATTERNS[int(data["use_mm"])],
            backend=backend,
        )
        assert found.medoid == int(data["medoid_index"])
        np.testing.assert_allclose(found.values, data[f"centroid_{n_updates}"], atol=1e-5)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("reservoir_*.npz")), ids=lambda path: path.stem)
def test_golden_reservoir_and_class_means(path):
    data = golden(path)
    kept = reservoir(data["labels"], int(data["sample_size"]), int(data["seed"]))
    labels = sorted(kept)
    for label in labels:
        np.testing.assert_array_equal(kept[label], data[f"kept_{label}"])
    found = fit_centroids(
        data["samples"],
        np.concatenate([[0], np.cumsum(data["lens"])]),
        data["labels"],
        class_names=[str(label) for label in labels],
        length=4,
        max_per_class=int(data["sample_size"]),
        max_iter=10,
        seed=int(data["seed"]),
    )
    np.testing.assert_allclose(found.values, data["mean_series_10iter_Tc4"], atol=1e-5)


def random_tses(n=12, n_features=3, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=(length, n_features)).cumsum(0) for length in random.integers(5, 20, n)]


def total_distance(center, tses, step_pattern="no_diagonal"):
    offsets = np.cumsum([0, *(len(tse) for tse in tses)])
    zeros = torch.zeros_like(center)[None]
    values = np.concatenate(tses).astype(np.float32)
    return (
        weighted_dtw(values, offsets, center[None], zeros, step_pattern=step_pattern, backend="torch")
        .sum()
        .item()
    )


@pytest.mark.parametrize("step_pattern", PATTERNS)
@pytest.mark.parametrize("resampled", [True, False])
def test_the_barycenter_is_nearer_to_its_samples_than_the_medoid(resampled, step_pattern):
    tses = random_tses()
    options = {"length": 8, "step_pattern": step_pattern, "resampled": resampled, "backend": "torch"}
    start, end = (barycenter(tses, max_iter=n, update="median", **options) for n in (0, 100))
    shown = [resample(torch.tensor(tse), 8).numpy() for tse in tses] if resampled else tses
    assert total_distance(end, shown, step_pattern) < total_distance(start, shown, step_pattern)


def test_the_median_update_lowers_the_l1_distance_below_the_means():
    tses = random_tses(30)
    # One outlier per step is what separates a median from a mean.
    tses[0] = tses[0] * 50
    mean, median = (
        barycenter(tses, update=update, resampled=False, backend="torch") for update in ("mean", "median")
    )
    assert total_distance(median, tses) < total_distance(mean, tses)


def test_tolerance_stops_earlier_than_the_fixed_point():
    options = {"length": 8, "max_iter": 100, "step_pattern": "no_diagonal", "backend": "torch"}
    exact = find_barycenter(random_tses(40), tol=None, **options)
    loose = find_barycenter(random_tses(40), tol=0.5, **options)
    assert exact.converged
    assert loose.converged
    assert loose.n_updates < exact.n_updates
    assert not find_barycenter(random_tses(40), tol=None, **options | {"max_iter": 1}).converged


def test_tslearn_is_an_init_and_an_oracle_for_the_diagonal():
    tses = [resample(torch.tensor(tse), 8).numpy() for tse in random_tses()]
    theirs = barycenter(tses, init="tslearn", max_iter=0)
    ours = barycenter(tses, init="tslearn", step_pattern="classic", backend="torch")
    medoid = barycenter(tses, max_iter=0, step_pattern="classic", backend="torch")
    # They minimise squared Euclidean cost, we L1: near to each other, each better than no averaging at all.
    assert total_distance(ours, tses, "classic") < total_distance(medoid, tses, "classic")
    assert total_distance(theirs, tses, "classic") < total_distance(medoid, tses, "classic")
    assert total_distance(ours, tses, "classic") == pytest.approx(
        total_distance(theirs, tses, "classic"), rel=0.1
    )


def test_one_sample_keeps_its_ends_of_constant_features():
    constant = np.full((5, 2), 3.0)
    np.testing.assert_array_equal(barycenter([constant], length=4, backend="torch"), np.full((4, 2), 3.0))


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [np.ones((0, 3))],
        [np.ones((4, 3)), np.ones((4, 2))],
        [np.ones(4)],
        [np.array([[1.0], [np.nan]])],
    ],
)
def test_impossible_samples_are_refused(samples):
    with pytest.raises(ConfigError):
        barycenter(samples)


@pytest.mark.parametrize(
    "options", [{"length": 0}, {"init": "random"}, {"update": "sum"}, {"init": torch.ones(3, 3)}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError):
        barycenter([np.ones((4, 2))], **options)


def test_a_class_without_samples_is_named():
    with pytest.raises(ConfigError, match=r"1 of 3 classes have no training sample: jump"):
        fit_centroids(np.ones((4, 2)), [0, 2, 4], [0, 2], class_names=["run", "jump", "sit"], length=2)


def test_classes_do_not_disturb_each_other():
    tses = random_tses(20)
    offsets = np.cumsum([0, *(len(tse) for tse in tses)])
    labels = np.arange(20) % 2
    both = fit_centroids(
        np.concatenate(tses), offsets, labels, class_names=["a", "b"], length=6, backend="torch"
    )
    alone = [barycenter(tses[label::2], length=6, backend="torch") for label in (0, 1)]
    np.testing.assert_allclose(both.values, torch.stack(alone), atol=1e-6)
