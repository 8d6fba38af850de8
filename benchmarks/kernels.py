"""Speed of the weighted-DTW kernels against the limit of this CPU and against other ways to compute the same.

    python benchmarks/kernels.py [--shape hmdb51 k400] [--batch 48 384] [--threads 1 2]
                                 [--steps] [--peers] [--aeon-python PATH] [--avx2] [--out FILE.json]

The limit is a loop of (subtract, clear the sign, multiply-add) on registers only, timed beside every run:
each rate is the median of per-run ratios, so that a shared machine slows both sides alike. Times are CPU
times, summed over threads. "structure" is a training step built as the authors' implementation is: local
costs by broadcasting in chunks of 128 features, DP and attribution per pair into dense (N, C, Tc, F)
tensors, autograd. On a CUDA device, if there is one, whole epochs with resident features are timed as
well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from dejavid.kernels import available_backends, cpu_emit, cpu_isa, weighted_dtw
from dejavid.kernels.cpu import CpuKernels
from dejavid.kernels.inputs import check_samples

SHAPES = {"hmdb51": (51, 1459), "k400": (400, 1808)}  # C, F; Tc = 8, T ~ Poisson(15) in 5..33
LENGTH = 8
SUMS = 12  # independent chains of the limit's loop: enough to hide every latency, few enough for AVX2
AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+cx16,+f16c,+fma,+lzcnt,+mmx,+movbe,+popcnt,"
    "+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3,+xsave,-avx512f",
}


@dataclass(frozen=True)
class Problem:
    values: Tensor
    offsets: Tensor
    centroids: Tensor
    log_weights: Tensor

    @property
    def cells(self) -> int:
        """Elements of a path search: one |c - x| each."""
        return len(self.values) * self.centroids.numel()

    @property
    def path_cells(self) -> int:
        n_samples, (n_classes, length, n_features) = len(self.offsets) - 1, self.centroids.shape
        return (len(self.values) + n_samples * (length - 1)) * n_classes * n_features


def make_problem(shape: str, batch: int) -> Problem:
    n_classes, n_features = SHAPES[shape]
    lengths = np.random.default_rng(0).poisson(15, batch).clip(5, 33)
    torch.manual_seed(0)
    size = n_classes, LENGTH, n_features
    offsets = torch.tensor(np.concatenate([[0], lengths.cumsum()]))
    return Problem(
        torch.randn(int(offsets[-1]), n_features), offsets, torch.randn(size), 0.3 * torch.randn(size)
    )


@intrinsic
def _limit_loop(_context: Any, count: Any, out: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        e = cpu_emit.Emitter(builder)
        width = 4 * cpu_isa.LANES
        c, x = (e.load(e.at(arguments[1], width * i)) for i in range(2))
        # No instruction, but the compiler cannot know what it returns: nothing can be moved out of the loop.
        register = {16: "v", 8: "x"}.get(cpu_isa.LANES, "w")
        kind = ir.FunctionType(x.type, [x.type])
        opaque = ir.InlineAsm(kind, "", f"={register},0", side_effect=True)
        zero = ir.Constant(x.type, [ir.Constant(ir.FloatType(), 0.0)] * cpu_isa.LANES)

        def body(_: Any, sums: list[Any]) -> list[Any]:
            return [e.fma(c, e.abs(e.b.fsub(c, e.b.call(opaque, [x]))), s) for s in sums]

        for i, total in enumerate(e.loop(arguments[0], [zero] * SUMS, body)):
            e.store(total, e.at(arguments[1], width * i))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@njit(nogil=True)
def _run_limit(count: int, out: Any) -> None:
    _limit_loop(count, out.ctypes.data)


def limit(count: int = 300_000) -> float:
    """Elements per second of one thread on registers only."""
    out = np.full(SUMS * cpu_isa.LANES, 1e-3, np.float32)
    start = time.thread_time()
    _run_limit(count, out)
    return count * SUMS * cpu_isa.LANES / (time.thread_time() - start)


def measure(task: Callable[[], Any], elements: int, runs: int) -> dict[str, float]:
    """Median rate, time and share of the limit over `runs` runs, each beside its own limit."""
    task()
    rates, shares, walls, cpus = [], [], [], []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        task()
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
        rates.append(elements / cpus[-1])
        shares.append(rates[-1] / limit())
    return {
        "wall_ms": 1e3 * float(np.median(walls)),
        "cpu_ms": 1e3 * float(np.median(cpus)),
        "g_elements_per_cpu_s": float(np.median(rates)) / 1e9,
        "share_of_limit": float(np.median(shares)),
    }


def kernels(problem: Problem, runs: int) -> dict[str, Any]:
    engine = CpuKernels(check_samples(problem.values, problem.offsets))
    parameters = problem.centroids, problem.log_weights
    _, lo, hi = engine.search(*parameters, "no_diagonal")
    grad = torch.randn(lo.shape[:2])
    return {
        "search": measure(lambda: engine.search(*parameters, "no_diagonal"), problem.cells, runs),
        "path_cost": measure(lambda: engine.path_cost(*parameters, lo, hi), problem.path_cells, runs),
        "path_gradients": measure(
            lambda: engine.path_gradients(*parameters, lo, hi, grad), problem.path_cells, runs
        ),
    }


def loss_of(distances: Tensor) -> Tensor:
    z = -(distances - distances.mean(1, keepdim=True)) / (distances.std(1, keepdim=True) + 1e-18)
    return torch.nn.functional.cross_entropy(z, torch.arange(len(z)) % z.shape[1])


def our_step(problem: Problem) -> None:
    parameters = [x.requires_grad_() for x in (problem.centroids, problem.log_weights)]
    frozen = {"path_centroids": problem.centroids.detach(), "path_log_weights": problem.log_weights.detach()}
    distances = weighted_dtw(problem.values, problem.offsets, *parameters, **frozen, backend="cpu")
    torch.autograd.grad(loss_of(distances), parameters)


@njit
def _attribute(cost: Any, x: Any, centroids: Any, slope: Any, intercept: Any) -> None:
    """DP, traceback and dense attribution of one sample to all classes."""
    n_classes, length, steps = cost.shape
    table = np.empty((length, steps), np.float32)
    for k in range(n_classes):
        for t in range(length):
            for s in range(steps):
                up = table[t - 1, s] if t else np.float32(1e38)
                left = table[t, s - 1] if s else np.float32(1e38)
                table[t, s] = cost[k, t, s] + min(up, left) if t + s else np.float32(0)
        t, s = length - 1, steps - 1
        while True:
            for f in range(x.shape[1]):
                sign = np.float32(-1) if x[s, f] < centroids[k, t, f] else np.float32(1)
                slope[k, t, f] -= sign
                intercept[k, t, f] += sign * x[s, f]
            if t + s == 0:
                break
            if t and (s == 0 or table[t - 1, s] < table[t, s - 1]):
                t -= 1
            else:
                s -= 1


def structure_step(problem: Problem) -> None:
    c, w = (x.requires_grad_() for x in (problem.centroids, problem.log_weights))
    n_samples, chunk = len(problem.offsets) - 1, 128
    slope = torch.zeros(n_samples, *c.shape)
    intercept = torch.zeros_like(slope)
    frozen, weights = c.detach(), w.detach().exp()
    for n in range(n_samples):
        x = problem.values[problem.offsets[n] : problem.offsets[n + 1]]
        cost = torch.zeros(*c.shape[:2], len(x))
        for f in range(0, c.shape[2], chunk):
            apart = (frozen[:, :, None, f : f + chunk] - x[None, None, :, f : f + chunk]).abs()
            cost += (weights[:, :, None, f : f + chunk] * apart).sum(-1)
        _attribute(cost.numpy(), x.numpy(), frozen.numpy(), slope[n].numpy(), intercept[n].numpy())
    distances = (w.exp() * (c * slope + intercept)).sum((2, 3))
    torch.autograd.grad(loss_of(distances), (c, w))


def memory(function: str, shape: str, batch: int) -> float:
    """Peak resident MB of a fresh process that makes two training steps."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import kernels, pathlib, torch; torch.set_num_threads(1)\n"
        f"p = kernels.make_problem({shape!r}, {batch}); kernels.{function}(p); kernels.{function}(p)\n"
        # Not ru_maxrss: that starts at the parent's.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(int(status.partition('VmHWM:')[2].split()[0]) / 1024)"
    )
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def steps(shape: str, batch: int, runs: int) -> dict[str, Any]:
    problem = make_problem(shape, batch)
    ours = measure(lambda: our_step(problem), 1, runs)["cpu_ms"]
    theirs = measure(lambda: structure_step(problem), 1, 3)["cpu_ms"]
    used = {name: memory(f"{name}_step", shape, batch) for name in ("our", "structure")}
    return {
        "batch": batch,
        "our_cpu_ms": ours,
        "structure_cpu_ms": theirs,
        "ratio": theirs / ours,
        "our_peak_mb": used["our"],
        "structure_peak_mb": used["structure"],
        "memory_ratio": used["our"] / used["structure"],
    }


def peers(runs: int, aeon_python: Path | None) -> dict[str, Any]:
    """Other libraries' own DTW (squared Euclidean, diagonal moves): 51 classes, 48 samples, T = 15 and 33."""
    found: dict[str, Any] = {}
    for n_features in (64, 1459):
        for n_steps in (15, 33):
            rng = np.random.default_rng(0)
            x = rng.normal(size=(48, n_steps, n_features)).astype(np.float32)
            c = torch.tensor(rng.normal(size=(51, LENGTH, n_features)).astype(np.float32))
            offsets = np.arange(49) * n_steps
            values = torch.tensor(x.reshape(-1, n_features))
            ours = partial(weighted_dtw, values, offsets, c, torch.zeros_like(c))
            row = {"dejavid": _pairs_per_s(ours, runs)}
            tasks = _peer_tasks(x.astype(np.float64), c.double().numpy())
            rates = {name: _pairs_per_s(task, 3) for name, task in tasks.items()}
            if aeon_python:
                rates["aeon"] = _aeon_pairs_per_s(aeon_python, n_features, n_steps)
            for name, rate in rates.items():
                row[name] = rate
                row[f"faster than {name}"] = row["dejavid"] / rate
            found[f"F={n_features} T={n_steps}"] = row
    return found


def _pairs_per_s(task: Callable[[], Any], runs: int) -> float:
    """Median over `runs`, each of as many calls as fill 0.02 s."""
    task()
    rates = []
    for _ in range(runs):
        calls, start = 0, time.process_time()
        while (spent := time.process_time() - start) < 0.02:
            task()
            calls += 1
        rates.append(calls / spent)
    return 48 * 51 * float(np.median(rates))


def _aeon_pairs_per_s(python: Path, n_features: int, n_steps: int) -> float:
    """In an environment of its own: aeon asks for another NumPy than this package's tests run with."""
    code = (
        "import time, numpy as np\n"
        "from aeon.distances import dtw_pairwise_distance\n"
        "normal = np.random.default_rng(0).normal\n"
        f"x = [normal(size=({n_features}, {n_steps})) for _ in range(48)]\n"
        f"c = [normal(size=({n_features}, {LENGTH})) for _ in range(51)]\n"
        "times = []\n"
        "for _ in range(9):\n"
        "    start = time.process_time(); dtw_pairwise_distance(x, c)\n"
        "    times.append(time.process_time() - start)\n"
        "print(48 * 51 / np.median(times[1:]))"
    )
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    run = [str(python), "-c", code]
    return float(subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout)


def _peer_tasks(x: Any, c: Any) -> dict[str, Callable[[], Any]]:
    tasks: dict[str, Callable[[], Any]] = {}
    try:
        from tslearn.metrics import cdist_dtw

        tasks["tslearn"] = lambda: cdist_dtw(x, c, n_jobs=1)
    except ImportError:
        pass
    try:
        from dtaidistance import dtw_ndim

        series, block = [*x, *c], ((0, len(x)), (len(x), len(x) + len(c)))
        options = {"block": block, "compact": True, "parallel": False}
        tasks["dtaidistance"] = lambda: dtw_ndim.distance_matrix_fast(series, x.shape[2], **options)
    except ImportError:
        pass
    return tasks


def first_call() -> dict[str, float]:
    """CPU and wall seconds of import and first training step in a fresh process, machine code on disk."""
    code = (
        "import time, torch; x, c = torch.randn(99, 70), torch.randn(20, 8, 70).requires_grad_()\n"
        "wall, cpu = time.perf_counter(), time.process_time()\n"
        "from dejavid.kernels import weighted_dtw\n"
        "frozen = dict(path_centroids=c.detach(), path_log_weights=torch.zeros_like(c))\n"
        "weighted_dtw(x, [0, 40, 99], c, torch.zeros_like(c), **frozen, backend='cpu').sum().backward()\n"
        "print(time.perf_counter() - wall, time.process_time() - cpu)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(4)
    ]
    wall, cpu = np.median([[float(t) for t in run.stdout.split()] for run in runs[1:]], axis=0)
    return {"wall_s": float(wall), "cpu_s": float(cpu)}


def device_epochs() -> dict[str, Any]:
    """Epochs with features resident on the GPU, from the time of one batch."""
    found: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    for name, (n_videos, steps_, n_classes, n_features) in {
        "k400": (240_000, 30, 400, 1808),
        "ssv2": (169_000, 40, 174, 6328),
    }.items():
        batch = 384
        c = torch.randn(n_classes, LENGTH, n_features, device="cuda").requires_grad_()
        w = torch.zeros_like(c).requires_grad_()
        values = torch.randn(batch * steps_, n_features, device="cuda").half()
        offsets = torch.arange(batch + 1) * steps_
        for backend in ("cuda", "cuda_half"):
            frozen = {"path_centroids": c.detach(), "path_log_weights": w.detach()}
            times: list[list[float]] = []
            for _ in range(7):
                torch.cuda.synchronize()
                start = time.perf_counter()
                weighted_dtw(values, offsets, c.detach(), w.detach(), backend=backend)
                torch.cuda.synchronize()
                middle = time.perf_counter()
                distances = weighted_dtw(values, offsets, c, w, **frozen, backend=backend)
                torch.autograd.grad(distances.sum(), (c, w))
                torch.cuda.synchronize()
                times.append([middle - start, time.perf_counter() - middle])
            search_s, step_s = np.median(times[2:], axis=0)
            found[f"{name} {backend}"] = {
                "search_elements_per_s": float(len(values) * c.numel() / search_s),
                "epoch_s": float(step_s * n_videos / batch),
            }
    return found


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "n_cpus": os.cpu_count(),
        "lanes": cpu_isa.LANES,
        "tile": [cpu_isa.ROW_VECTORS * cpu_isa.LANES, cpu_isa.TILE_COLUMNS],
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--batch", type=int, nargs="+", default=[48])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--steps", action="store_true", help="training steps against the authors' structure")
    parser.add_argument("--peers", action="store_true", help="tslearn and dtaidistance where installed")
    parser.add_argument("--aeon-python", type=Path, help="with --peers: a Python in which aeon is installed")
    parser.add_argument("--avx2", action="store_true", help="the kernels again, compiled for AVX2 only")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()

    result: dict[str, Any] = {"machine": machine()}
    for threads in options.threads:
        torch.set_num_threads(threads)
        for shape in options.shape:
            for batch in options.batch:
                key = f"{shape} batch {batch}, {threads} thread(s)"
                result[key] = kernels(make_problem(shape, batch), options.runs)
                for name, row in result[key].items():
                    print(f"{key}: {name} {row['share_of_limit']:.0%} of the limit, {row['cpu_ms']:.1f} ms")
    torch.set_num_threads(1)
    if options.steps:
        result["steps"] = {s: steps(s, {"hmdb51": 48, "k400": 8}[s], options.runs) for s in options.shape}
        result["first_call"] = first_call()
    if options.peers:
        result["pairs_per_s"] = peers(options.runs, options.aeon_python)
    if options.avx2:
        command = [sys.executable, __file__, "--shape", *options.shape, "--batch", *map(str, options.batch)]
        environment = {**os.environ, **AVX2}
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        result["avx2_only"] = json.loads(text[text.index("{") :])
    if available_backends()["cuda"].startswith("usable"):
        result["device"] = device_epochs()
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
