"""Gradients: by finite differences in float64, and between backends."""

import pytest
import torch

from dejavid.kernels import weighted_dtw
from dejavid.kernels.torch_ops import soft_weighted_dtw

PATTERNS = ["no_diagonal", "classic"]


@pytest.mark.parametrize("step_pattern", PATTERNS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gradcheck(make_case, backend, frozen, step_pattern):
    case = make_case(0, [1, 4, 7], 2, 3, 2, torch.float64)
    path = (
        {"path_centroids": case.path_centroids, "path_log_weights": case.path_log_weights} if frozen else {}
    )

    def distances(c, w):
        return weighted_dtw(
            case.values, case.offsets, c, w, step_pattern=step_pattern, backend=backend, **path
        )

    torch.autograd.gradcheck(distances, (case.centroids.requires_grad_(), case.log_weights.requires_grad_()))


@pytest.mark.parametrize("step_pattern", PATTERNS)
def test_soft_gradcheck(make_case, step_pattern):
    case = make_case(1, [1, 5], 2, 3, 2, torch.float64)

    def distances(c, w):
        return soft_weighted_dtw(case.values, case.offsets, c, w, gamma=0.5, step_pattern=step_pattern)

    torch.autograd.gradcheck(distances, (case.centroids.requires_grad_(), case.log_weights.requires_grad_()))


@pytest.mark.parametrize("step_pattern", PATTERNS)
def test_soft_approaches_hard_from_below(make_case, step_pattern):
    case = make_case(2, [3, 9, 1], 3, 4, 5, torch.float64)
    arguments = case.values, case.offsets, case.centroids, case.log_weights
    hard = weighted_dtw(*arguments, step_pattern=step_pattern, backend="torch")
    gaps = [
        (hard - soft_weighted_dtw(*arguments, gamma=g, step_pattern=step_pattern)).max().item()
        for g in (1.0, 0.1, 1e-4)
    ]
    assert gaps[0] > gaps[1] > gaps[2] >= -1e-9
    assert gaps[2] < 1e-3
