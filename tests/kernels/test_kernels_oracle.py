"""Paths and distances against third-party DTW, fed with our local costs."""

import numpy as np
import pytest
import torch

from dejavid.kernels import warping_path, weighted_dtw
from dejavid.kernels.reference import local_cost

BACKENDS = ["reference", "torch", "cpu"]


def cases(make_case):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, 30, size=3).tolist()
        yield make_case(seed, lengths, 3, int(rng.integers(1, 12)), int(rng.integers(1, 20)))


def pairs(case):
    """For every sample and class: their numbers and the (Tc, T) local costs."""
    for n in range(len(case.offsets) - 1):
        x = case.values[case.offsets[n] : case.offsets[n + 1]].double().numpy()
        for k in range(len(case.centroids)):
            yield (
                n,
                k,
                local_cost(x, case.centroids[k].double().numpy(), case.log_weights[k].double().exp().numpy()),
            )


@pytest.mark.parametrize("step_pattern", ["no_diagonal", "classic"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_paths_equal_those_of_dtw_python(make_case, backend, step_pattern):
    dtw = pytest.importorskip("dtw", reason="dtw-python is not installed")
    # Rows of a step pattern: number of the move, steps back in t and s, weight (-1 where a move starts).
    moves = [[1, 1, 0, -1], [1, 0, 0, 1], [2, 0, 1, -1], [2, 0, 0, 1]]
    if step_pattern == "classic":
        moves += [[3, 1, 1, -1], [3, 0, 0, 1]]
    pattern = dtw.StepPattern(np.array(moves, float))
    compared = 0
    for case in cases(make_case):
        arguments = case.values, case.offsets, case.centroids, case.log_weights
        lo, hi = warping_path(*arguments, step_pattern=step_pattern, backend=backend)
        distances = weighted_dtw(*arguments, step_pattern=step_pattern, backend=backend)
        for n, k, cost in pairs(case):
            theirs = dtw.dtw(cost, step_pattern=pattern)
            first = [theirs.index2[theirs.index1 == t].min() for t in range(len(cost))]
            last = [theirs.index2[theirs.index1 == t].max() for t in range(len(cost))]
            np.testing.assert_array_equal(lo[n, k], first)
            np.testing.assert_array_equal(hi[n, k], last)
            np.testing.assert_allclose(distances[n, k], theirs.distance, rtol=1e-5)
            compared += 1
    assert compared == 72


@pytest.mark.parametrize("backend", BACKENDS)
def test_classic_distances_equal_those_of_tslearn(make_case, backend):
    metrics = pytest.importorskip("tslearn.metrics", reason="tslearn is not installed")
    for case in cases(make_case):
        arguments = case.values, case.offsets, case.centroids, torch.zeros_like(case.log_weights)
        distances = weighted_dtw(*arguments, step_pattern="classic", backend=backend)
        for n, (start, stop) in enumerate(zip(case.offsets[:-1], case.offsets[1:], strict=True)):
            for k, centroid in enumerate(case.centroids):
                _, theirs = metrics.dtw_path_from_metric(
                    centroid.double().numpy(), case.values[start:stop].double().numpy(), metric="cityblock"
                )
                np.testing.assert_allclose(distances[n, k], theirs, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_classic_distances_of_one_feature_equal_those_of_dtaidistance(make_case, backend):
    """Its inner distance is Euclidean, which is |a - b| where there is one feature."""
    dtw = pytest.importorskip("dtaidistance.dtw", reason="dtaidistance is not installed")
    for seed in range(8):
        rng = np.random.default_rng(seed)
        case = make_case(seed, rng.integers(1, 30, size=4).tolist(), 3, int(rng.integers(1, 12)), 1)
        arguments = case.values, case.offsets, case.centroids, torch.zeros_like(case.log_weights)
        distances = weighted_dtw(*arguments, step_pattern="classic", backend=backend)
        samples = [x.flatten().double().numpy() for x in case.values.split(case.offsets.diff().tolist())]
        for n, sample in enumerate(samples):
            for k, centroid in enumerate(case.centroids.flatten(1).double().numpy()):
                theirs = dtw.distance(centroid, sample, inner_dist="euclidean")
                np.testing.assert_allclose(distances[n, k], theirs, rtol=1e-5)
