"""Backends against the definition on random cases, and what must not change a result."""

import pytest
import torch

from dejavid.kernels import warping_path, weighted_dtw
from dejavid.kernels.dispatch import grouped_warping_path

PATTERNS = ["no_diagonal", "classic"]
# (lengths of the samples, C, Tc, F): tiles, lanes and chunks full, with a rest, and just one.
SHAPES = [
    ([1], 1, 1, 1),
    ([7], 1, 8, 16),
    ([1, 2, 3], 3, 8, 17),
    ([40, 1, 33], 2, 1, 5),
    ([5, 9, 2, 11], 17, 3, 70),
    ([12, 30], 4, 40, 33),
    ([70, 300, 5], 2, 9, 20),
]


def everything(case, backend, step_pattern, frozen=True):
    """Distances, both gradients, lo and hi."""
    parameters = case.centroids.clone().requires_grad_(), case.log_weights.clone().requires_grad_()
    path = (
        {"path_centroids": case.path_centroids, "path_log_weights": case.path_log_weights} if frozen else {}
    )
    distances = weighted_dtw(
        case.values, case.offsets, *parameters, step_pattern=step_pattern, backend=backend, **path
    )
    weights = torch.linspace(-1, 1, distances.numel()).view_as(distances)
    grads = torch.autograd.grad(distances, parameters, weights)
    search = (case.path_centroids, case.path_log_weights) if frozen else parameters
    lo, hi = warping_path(case.values, case.offsets, *search, step_pattern=step_pattern, backend=backend)
    return distances.detach(), *grads, lo, hi


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("step_pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backends_agree_with_the_definition(make_case, backend, shape, step_pattern, frozen):
    case = make_case(3, *shape)
    actual = everything(case, backend, step_pattern, frozen)
    expected = everything(case, "reference", step_pattern, frozen)
    torch.testing.assert_close(actual[3], expected[3], rtol=0, atol=0)
    torch.testing.assert_close(actual[4], expected[4], rtol=0, atol=0)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-5)
    for grad, truth in zip(actual[1:3], expected[1:3], strict=True):
        torch.testing.assert_close(grad, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))


def test_any_split_of_the_batch_gives_the_same(make_case, backend):
    lengths = [4, 1, 9, 6]
    case = make_case(4, lengths, 5, 4, 21)
    distances, *_, lo, hi = everything(case, backend, "no_diagonal")
    for n, (start, stop) in enumerate(zip(case.offsets[:-1], case.offsets[1:], strict=True)):
        single = type(case)(
            case.values[start:stop],
            torch.tensor([0, lengths[n]]),
            *(getattr(case, f"{p}{x}") for p in ("", "path_") for x in ("centroids", "log_weights")),
        )
        alone, *_, lo_alone, hi_alone = everything(single, backend, "no_diagonal")
        torch.testing.assert_close(alone[0], distances[n], rtol=1e-6, atol=0)
        assert torch.equal(lo_alone[0], lo[n])
        assert torch.equal(hi_alone[0], hi[n])


def test_permuted_classes_permute_the_results(make_case, backend):
    case = make_case(5, [6, 3], 18, 3, 9)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    moved = type(case)(case.values, case.offsets, *(x[order] for x in list(vars(case).values())[2:]))
    (distances, *_, lo, hi), (other, *_, other_lo, other_hi) = (
        everything(x, backend, "classic") for x in (case, moved)
    )
    torch.testing.assert_close(other, distances[:, order], rtol=1e-6, atol=0)
    assert torch.equal(other_lo, lo[:, order])
    assert torch.equal(other_hi, hi[:, order])


@pytest.mark.parametrize("step_pattern", PATTERNS)
def test_time_reversed_on_both_sides_changes_no_distance(make_case, backend, step_pattern):
    case = make_case(6, [8, 5, 13], 3, 4, 10)
    backwards = torch.cat([x.flip(0) for x in case.values.split(case.offsets.diff().tolist())])
    there = weighted_dtw(
        case.values,
        case.offsets,
        case.centroids,
        case.log_weights,
        step_pattern=step_pattern,
        backend=backend,
    )
    back = weighted_dtw(
        backwards,
        case.offsets,
        case.centroids.flip(1),
        case.log_weights.flip(1),
        step_pattern=step_pattern,
        backend=backend,
    )
    torch.testing.assert_close(back, there, rtol=1e-5, atol=0)


def test_doubled_weights_double_the_distance_and_keep_the_path(make_case, backend):
    case = make_case(7, [8, 5, 13], 3, 4, 10)
    plain = weighted_dtw(case.values, case.offsets, case.centroids, case.log_weights, backend=backend)
    doubled = case.log_weights + torch.log(torch.tensor(2.0))
    twice = weighted_dtw(case.values, case.offsets, case.centroids, doubled, backend=backend)
    torch.testing.assert_close(twice, 2 * plain, rtol=1e-5, atol=0)


def test_features_of_no_weight_change_nothing(make_case, backend):
    case = make_case(8, [8, 5, 13], 3, 4, 15)
    plain = weighted_dtw(case.values, case.offsets, case.centroids, case.log_weights, backend=backend)
    more = torch.full((len(case.values), 40), 7.0)
    values = torch.cat([case.values, more], 1)
    centroids = torch.cat([case.centroids, torch.zeros(3, 4, 40)], 2)
    log_weights = torch.cat([case.log_weights, torch.full((3, 4, 40), -torch.inf)], 2)
    actual = weighted_dtw(values, case.offsets, centroids, log_weights, backend=backend)
    torch.testing.assert_close(actual, plain, rtol=1e-6, atol=0)


def test_what_lies_around_a_batch_is_never_seen(make_case, backend):
    case = make_case(9, [8, 5, 13], 3, 4, 15)
    expected = everything(case, backend, "no_diagonal")
    room = torch.full((40, 15), torch.nan)
    room[6:32] = case.values
    inside = type(case)(room[6:32], *list(vars(case).values())[1:])
    for actual, truth in zip(everything(inside, backend, "no_diagonal"), expected, strict=True):
        torch.testing.assert_close(actual, truth, rtol=0, atol=0)


@pytest.mark.parametrize("step_pattern", PATTERNS)
def test_paths_are_paths(make_case, backend, step_pattern):
    case = make_case(10, [1, 6, 30], 4, 7, 3)
    lo, hi = warping_path(
        case.values,
        case.offsets,
        case.centroids,
        case.log_weights,
        step_pattern=step_pattern,
        backend=backend,
    )
    assert (lo[..., 0] == 0).all()
    assert (hi[..., -1] == case.offsets.diff()[:, None] - 1).all()
    assert (lo <= hi).all()
    gap = lo[..., 1:] - hi[..., :-1]
    assert set(gap.unique().tolist()) <= ({0} if step_pattern == "no_diagonal" else {0, 1})


def test_grouped_paths_are_those_of_each_class(make_case, backend):
    case = make_case(11, [3, 8, 2, 9, 4], 4, 3, 6)
    groups = [0, 2, 2, 3, 5]  # the second class has no sample
    arguments = case.centroids, case.log_weights
    lo, hi = grouped_warping_path(case.values, case.offsets, groups, *arguments, backend=backend)
    all_lo, all_hi = warping_path(case.values, case.offsets, *arguments, backend=backend)
    own = torch.tensor([0, 0, 2, 3, 3])
    assert torch.equal(lo, all_lo[torch.arange(5), own])
    assert torch.equal(hi, all_hi[torch.arange(5), own])
