"""Every backend against vectors computed by the authors' implementation (see README.md there)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dejavid.kernels import warping_path, weighted_dtw

GOLDEN = Path(__file__).parents[1] / "golden" / "dejavid" / "forward"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
# All distances of a sample equal: the z-score divides by its epsilon, the recorded gradients are noise.
EQUAL_DISTANCES = ("equal_class", "ties_const")


@pytest.fixture(params=CASES)
def golden(request):
    with np.load(GOLDEN / f"{request.param}.npz") as data:
        return {"case": request.param, **data}


def run(golden, backend, dtype):
    """Distances, z-scored logits, loss and gradients as the authors' training step computes them."""
    tensor = {k: torch.tensor(golden[k], dtype=dtype) for k in ("samples", "centroids", "log_weights")}
    offsets = np.concatenate([[0], np.cumsum(golden["lens"])])
    c, w = tensor["centroids"].requires_grad_(), tensor["log_weights"].requires_grad_()
    pattern = "classic" if golden["use_mm"] else "no_diagonal"
    path = None, None
    if golden["use_fixed_path"]:
        path = (
            torch.tensor(golden["frozen_centroids"], dtype=dtype),
            torch.tensor(golden["frozen_weights"], dtype=dtype).log(),
        )
    distances = weighted_dtw(
        tensor["samples"],
        offsets,
        c,
        w,
        path_centroids=path[0],
        path_log_weights=path[1],
        step_pattern=pattern,
        backend=backend,
    )
    d = distances.double()  # the z-score amplifies rounding, and it is not what is tested here
    logits = -(d - d.mean(1, keepdim=True)) / (d.std(1, keepdim=True) + 1e-18)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(golden["labels"]))
    grads = torch.autograd.grad(loss, (c, w))
    search = [c, w] if path[0] is None else list(path)
    lo, hi = warping_path(tensor["samples"], offsets, *search, step_pattern=pattern, backend=backend)
    return distances.detach(), logits.detach(), loss.detach(), grads, lo, hi


def close(actual, expected, limit, what):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    worst = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-300)
    assert worst <= limit, f"{what}: {worst:.2e} > {limit:.0e}"


def test_float32_agrees_with_the_authors(golden, backend):
    distances, logits, loss, grads, lo, hi = run(golden, backend, torch.float32)
    case = golden["case"].rsplit("_mm", 1)[0]
    np.testing.assert_array_equal(lo, golden["lo"])
    np.testing.assert_array_equal(hi, golden["hi"])
    # With features of 1000 +- 1 the authors' slope-intercept form cancels; the float64 numbers are the truth.
    suffix = "64" if case == "offset" else ""
    np.testing.assert_allclose(distances, golden[f"dist{suffix}"], rtol=3e-5 if suffix else 1e-5)
    if case in EQUAL_DISTANCES:
        return
    np.testing.assert_allclose(logits, golden[f"logits{suffix}"], atol=2e-4 if suffix else 1e-4)
    np.testing.assert_allclose(loss, golden[f"loss{suffix}"], atol=1e-4 if suffix else 1e-5)
    for name, grad in zip(("centroids", "log_weights"), grads, strict=True):
        expected = golden[f"grad_{name}{suffix}"]
        if case == "two_class":  # exactly 0 in theory: z-scores of two distances are constant
            assert grad.abs().max() < 1e-5
        else:
            close(grad, expected, 3e-4 if suffix else 1e-3, f"gradient of {name}")


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_float64_agrees_with_the_independent_port(golden, backend):
    distances, logits, loss, grads, lo, hi = run(golden, backend, torch.float64)
    case = golden["case"].rsplit("_mm", 1)[0]
    np.testing.assert_array_equal(lo, golden["lo"])
    np.testing.assert_array_equal(hi, golden["hi"])
    np.testing.assert_allclose(distances, golden["dist64"], rtol=1e-9)
    if case in EQUAL_DISTANCES:
        return
    np.testing.assert_allclose(logits, golden["logits64"], atol=1e-9)
    np.testing.assert_allclose(loss, golden["loss64"], atol=1e-9)
    if case != "two_class":
        close(grads[0], golden["grad_centroids64"], 1e-9, "gradient of centroids")
        close(grads[1], golden["grad_log_weights64"], 1e-9, "gradient of log-weights")
