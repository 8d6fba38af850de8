"""The CUDA source: compiled where nvcc is, run on the CPU by a stand-in, run on a GPU if there is one."""

import re
import shutil
import subprocess

import pytest
import torch

from dejavid.errors import OutOfMemory
from dejavid.kernels import available_backends, warping_path, weighted_dtw
from dejavid.kernels.cuda import SOURCE, CudaKernels
from dejavid.kernels.inputs import check_samples

KERNELS = {"local_costs", "local_costs_half", "align", "path_costs", "path_gradients"}


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_compiles_without_spills(architecture, tmp_path, record_property):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed: the source cannot be compiled for a device")
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", "-DHALF_SEARCH", "-Xptxas", "-v", "-cubin"]
    command += ["-o", str(tmp_path / "weighted_dtw.cubin"), str(SOURCE)]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.S,
    )
    assert {name for name, *_ in found} == KERNELS, log
    for name, stores, loads, registers in found:
        print(f"{architecture} {name}: {registers} registers, {stores} + {loads} bytes spilled")
        record_property(f"{architecture} {name} registers", registers)
        assert stores == loads == "0", f"{name} spills"
        # Two blocks of 256 threads share the 65,536 registers of a processor.
        assert int(registers) <= 128, f"{name} uses {registers} registers"


@pytest.mark.parametrize("step_pattern", ["no_diagonal", "classic"])
def test_chunks_and_blocks_change_nothing(make_case, stand_in, step_pattern):
    case = make_case(0, [90, 60, 3, 200, 31], 9, 37, 300)
    samples = check_samples(case.values, case.offsets)
    parameters = case.centroids, case.log_weights
    whole = CudaKernels(samples, stand_in)
    pieces = CudaKernels(samples, stand_in, bytes_at_once=1)
    expected = whole.search(*parameters, step_pattern)
    for actual, truth in zip(pieces.search(*parameters, step_pattern), expected, strict=True):
        # Pieces this small leave the features unshared, hence another order of summation.
        torch.testing.assert_close(actual, truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        pieces.path_cost(*parameters, *expected[1:]),
        whole.path_cost(*parameters, *expected[1:]),
        rtol=1e-6,
        atol=0,
    )


def test_the_order_of_threads_changes_nothing(make_case, stand_in):
    case = make_case(1, [50, 7, 33], 3, 11, 200)
    kernels = CudaKernels(check_samples(case.values, case.offsets), stand_in)
    parameters = case.centroids, case.log_weights
    first, *path = kernels.search(*parameters, "classic")
    grad = torch.linspace(-1, 1, first.numel()).view_as(first)
    results = [
        (*kernels.search(*parameters, "classic"), *kernels.path_gradients(*parameters, *path, grad))
        for _ in "123"
    ]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_stand_in_notices_a_missing_barrier(make_case, stand_in_of):
    source = SOURCE.read_text()
    broken = stand_in_of(source.replace("__syncthreads();", ""))
    case = make_case(2, [30], 1, 8, 64)
    samples = check_samples(case.values, case.offsets)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            CudaKernels(samples, broken).search(case.centroids, case.log_weights, "no_diagonal")[0],
            weighted_dtw(case.values, case.offsets, case.centroids, case.log_weights, backend="cpu"),
        )


def test_half_search_is_close_and_costs_in_single_precision(make_case, stand_in):
    case = make_case(3, [20, 13, 40, 9], 6, 8, 333)
    samples = check_samples(case.values, case.offsets)
    exact, *path = CudaKernels(samples, stand_in).search(case.centroids, case.log_weights, "no_diagonal")
    half = CudaKernels(samples, stand_in, half=True)
    distances, *half_path = half.search(case.centroids, case.log_weights, "no_diagonal")
    # A path found in half precision is at most a little dearer, and its cost is exact.
    assert (distances >= exact * (1 - 1e-6)).all()
    torch.testing.assert_close(distances, exact, rtol=1e-4, atol=0)
    same = [(a == b).all(-1) for a, b in zip(half_path, path, strict=True)]
    assert torch.stack(same).all(0).float().mean() > 0.8


def test_half_search_falls_back_where_half_precision_overflows(make_case, stand_in):
    case = make_case(4, [5, 6], 2, 3, 40)
    case.values.mul_(3e4)
    samples = check_samples(case.values, case.offsets)
    exact = CudaKernels(samples, stand_in).search(case.centroids, case.log_weights, "no_diagonal")
    half = CudaKernels(samples, stand_in, half=True).search(case.centroids, case.log_weights, "no_diagonal")
    assert all(torch.equal(a, b) for a, b in zip(half, exact, strict=True))


def test_running_out_of_memory_names_the_tensor(make_case, stand_in, monkeypatch):
    case = make_case(5, [4], 2, 3, 5)
    kernels = CudaKernels(check_samples(case.values, case.offsets), stand_in)

    def refuse(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(OutOfMemory, match="cannot allocate 8 bytes for the distances"):
        kernels.search(case.centroids, case.log_weights, "no_diagonal")


@pytest.mark.gpu
class TestOnDevice:
    @pytest.fixture(autouse=True)
    def _device(self):
        if not available_backends()["cuda"].startswith("usable"):
            pytest.skip(f"no CUDA device for the kernels: {available_backends()['cuda']}")

    @pytest.mark.parametrize("step_pattern", ["no_diagonal", "classic"])
    @pytest.mark.parametrize(
        "shape", [([1], 1, 1, 1), ([40, 1, 33], 5, 8, 1459), ([300, 70], 3, 40, 33)], ids=str
    )
    def test_agrees_with_the_cpu(self, make_case, shape, step_pattern):
        case = make_case(6, *shape)
        results = []
        for device in ("cpu", "cuda"):
            values, c, w, pc, pw = (
                x.to(device)
                for x in (
                    case.values,
                    case.centroids,
                    case.log_weights,
                    case.path_centroids,
                    case.path_log_weights,
                )
            )
            parameters = c.requires_grad_(), w.requires_grad_()
            distances = weighted_dtw(
                values,
                case.offsets,
                *parameters,
                path_centroids=pc,
                path_log_weights=pw,
                step_pattern=step_pattern,
            )
            grads = torch.autograd.grad(distances.square().sum(), parameters)
            path = warping_path(values, case.offsets, pc, pw, step_pattern=step_pattern)
            results.append([x.detach().cpu() for x in (distances, *grads, *path)])
        expected, actual = results
        for a, e in zip(actual[3:], expected[3:], strict=True):
            assert torch.equal(a, e)
        for a, e in zip(actual[:3], expected[:3], strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5 * float(e.abs().max()))

    def test_runs_on_the_current_stream(self, make_case):
        case = make_case(7, [30, 20], 4, 8, 600)
        host = weighted_dtw(case.values, case.offsets, case.centroids, case.log_weights, backend="cpu")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            values, c, w = (
                x.cuda(non_blocking=True) for x in (case.values, case.centroids, case.log_weights)
            )
            torch.cuda._sleep(50_000_000)
            values = values + 0  # queued behind the sleep: a kernel on another stream would read too early
            distances = weighted_dtw(values, case.offsets, c, w, backend="cuda")
        stream.synchronize()
        torch.testing.assert_close(distances.cpu(), host, rtol=1e-5, atol=0)

    def test_half_search_on_device(self, make_case):
        case = make_case(8, [20, 13, 40, 9], 6, 8, 1459)
        arguments = [x.cuda() if i != 1 else x for i, x in enumerate(list(vars(case).values())[:4])]
        exact = weighted_dtw(*arguments, backend="cuda")
        half = weighted_dtw(*arguments, backend="cuda_half")
        assert (half >= exact * (1 - 1e-6)).all()
        torch.testing.assert_close(half, exact, rtol=1e-4, atol=0)
