"""What is particular to the CPU backend: plain twin, instruction sets, threads, processes, disk cache."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dejavid.errors import OutOfMemory
from dejavid.kernels import cpu, cpu_isa, cpu_plain, weighted_dtw

HERE = Path(__file__).parent
AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+cx16,+f16c,+fma,+lzcnt,+mmx,+movbe,+popcnt,"
    "+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3,+xsave,-avx512f",
}


@pytest.fixture
def training_step(make_case):
    """Distances and gradients of a batch that is cut into several chunks and blocks."""
    case = make_case(0, [200, 90, 300, 1, 33, 700, 800], 37, 9, 131)

    def run():
        parameters = case.centroids.clone().requires_grad_(), case.log_weights.clone().requires_grad_()
        distances = weighted_dtw(
            case.values,
            case.offsets,
            *parameters,
            path_centroids=case.path_centroids,
            path_log_weights=case.path_log_weights,
            step_pattern="classic",
            backend="cpu",
        )
        return distances.detach(), *torch.autograd.grad(distances.square().sum(), parameters)

    return run


def test_the_plain_twin_computes_the_same(training_step, monkeypatch):
    if not cpu_isa.HAS_VECTOR_CODE:
        pytest.skip("this CPU has no vector code: the twin is what runs anyway")
    expected = training_step()
    monkeypatch.setattr(cpu, "loops", cpu_plain)
    for actual, truth in zip(training_step(), expected, strict=True):
        torch.testing.assert_close(actual, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))


def test_weights_are_exponentials_to_the_last_place():
    log_weights = np.concatenate([np.linspace(-87, 88.7, 997), [0, -200, -np.inf, 89, np.inf, np.nan]])
    log_weights = log_weights.astype(np.float32).reshape(1, 1, -1)
    width = -(-log_weights.size // (cpu_isa.VECTORS * cpu_isa.LANES)) * cpu_isa.VECTORS * cpu_isa.LANES
    centroids, weights = (cpu._buffer("tiles", 1, 1, width) for _ in "cw")
    cpu.loops.tile_params(log_weights, log_weights, centroids, weights)
    np.testing.assert_array_equal(centroids[..., : log_weights.size], log_weights)
    assert not centroids[..., log_weights.size :].any()
    assert not weights[..., log_weights.size :].any()
    with np.errstate(over="ignore"):
        expected = np.exp(log_weights.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(weights[..., : log_weights.size], expected, rtol=2**-22)


def test_the_number_of_threads_changes_nothing(training_step):
    expected = training_step()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        actual = training_step()
    finally:
        torch.set_num_threads(before)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-6 * float(e.abs().max()))


def test_threads_of_the_user_may_call_at_once(training_step):
    expected = training_step()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: training_step(), range(8)))
    for result in results:
        assert all(torch.equal(a, e) for a, e in zip(result, expected, strict=True))


def test_results_are_never_written_over_while_something_refers_to_them(make_case):
    case = make_case(1, [5, 9], 3, 4, 21)
    parameters = case.centroids.requires_grad_(), case.log_weights.requires_grad_()

    def gradients(scale):
        distances = weighted_dtw(case.values, case.offsets, *parameters, backend="cpu")
        return torch.autograd.grad(scale * distances.sum(), parameters)

    first = gradients(1.0)
    expected, row = [x.clone() for x in first], first[1][-1, -1]
    addresses = [first[0].data_ptr()]
    del first
    second = gradients(2.0)
    addresses.append(second[0].data_ptr())
    assert addresses[0] != addresses[1]
    assert torch.equal(row, expected[1][-1, -1])
    torch.testing.assert_close(second, tuple(2 * x for x in expected))
    del second, row
    assert gradients(3.0)[0].data_ptr() in addresses


def test_a_failing_helper_thread_is_heard():
    def fail(_queue):
        raise ArithmeticError("from a helper")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ArithmeticError, match="from a helper"):
            cpu._share_out(fail, 4, 1 << 40)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_works_in_a_forked_process():
    code = """
import os, torch
from dejavid.kernels import weighted_dtw
torch.set_num_threads(2)
# Tensors too small for torch's own threads, which do not survive a fork.
x, c = torch.randn(400, 70), torch.randn(40, 8, 70)
call = lambda: weighted_dtw(x, [0, 100, 400], c, torch.zeros_like(c), backend="cpu")
expected = call()
child = os.fork()
if child == 0:
    os._exit(not torch.equal(call(), expected))
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert (
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, timeout=120).returncode == 0
    )


@pytest.mark.slow
def test_avx2_code_agrees_with_the_authors(tmp_path):
    if cpu_isa.LANES != 16:
        pytest.skip("this CPU has no AVX-512: AVX2 is what the other tests ran")
    environment = {**os.environ, **AVX2, "NUMBA_CACHE_DIR": str(tmp_path)}
    check = "from dejavid.kernels import cpu_isa as i; raise SystemExit((i.LANES, i.TILE_COLUMNS) != (8, 4))"
    subprocess.run([sys.executable, "-c", check], env=environment, check=True)
    tests = [str(HERE / "test_kernels_golden.py"), str(HERE / "test_kernels_agree.py"), "-k", "cpu", "-q"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *tests], env=environment, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_machine_code_uses_the_registers_it_was_written_for(tmp_path):
    """Full-width vectors in the tile's loop, and no spill inside it."""
    if cpu_isa.LANES != 16:
        pytest.skip("written for AVX-512 registers")
    code = """
import torch
from dejavid.kernels import cpu_vector
params, values, cost = (torch.zeros(shape).numpy() for shape in (32 * 2 * 5, (10, 5), (10, 32)))
cpu_vector.local_costs(params, values, cost)
print(list(cpu_vector.local_costs.inspect_asm().values())[0])
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    asm = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    # Loops of one block: from a label to the jump back to it.
    loops = re.findall(r"\n\.(LBB\d+_\d+):((?:(?!\n\.L).)*?)\n\tj\w+\t\.\1\n", asm, re.S)
    tiles = [body for _, body in loops if body.count("vfmadd") >= 10]
    assert {body.count("vfmadd") for body in tiles} == {10, 20}
    for body in tiles:
        assert body.count("%zmm") >= 3 * body.count("vfmadd")
        assert "(%rsp)" not in body, body


def test_running_out_of_memory_names_the_tensor():
    with pytest.raises(OutOfMemory, match="cannot allocate 4503599627370496 bytes for the packed values"):
        cpu._buffer("packed values", 1 << 50)


def test_an_unwritable_cache_is_no_error(tmp_path):
    code = """
import torch
from dejavid.kernels import weighted_dtw
weighted_dtw(torch.ones(3, 2), [0, 3], torch.ones(1, 2, 2), torch.zeros(1, 2, 2), backend="cpu")
"""
    blocker = tmp_path / "file"
    blocker.touch()
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(blocker / "no-folder")}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
