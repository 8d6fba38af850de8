"""What the store costs: append, open, scan, random batches, verify; beside memmap, zarr, h5py and others.

    python benchmarks/store.py [--gb 2] [--dim 1808] [--out results.json] [--cold]

Every reader returns the same float16 rows of the same ragged videos (T 5 to 150), one packed array per batch.
Readers take turns within one run; the best of the rounds counts, as ratios to np.memmap. `--cold` drops the
page cache before each measurement (needs root) and opens each reader anew, as mapped pages are not dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dejavid.store import create_store, open_store, verify

BATCH = 64
Reader = Callable[[list[int]], np.ndarray]


def lengths_of(n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Video lengths like those of real sets: median about 33, 5 to 150."""
    drawn = np.clip(rng.lognormal(3.5, 0.55, n_rows // 20), 5, 150).astype(int)
    return drawn[: int(np.searchsorted(np.cumsum(drawn), n_rows)) + 1]


def videos(lengths: np.ndarray, dim: int) -> Iterator[np.ndarray]:
    block = np.random.default_rng(0).standard_normal((4096, dim)).astype(np.float16)
    for number, length in enumerate(lengths):
        start = number * 37 % (len(block) - length)
        yield block[start : start + length]


def write_store(path: Path, lengths: np.ndarray, dim: int, format: str) -> float:
    store = create_store(path, feature_dim=dim, fingerprint_facts={}, format=format)
    start = time.perf_counter()
    with store.writer() as writer:
        for number, values in enumerate(videos(lengths, dim)):
            steps = np.arange(len(values))
            writer.append(f"{number:07d}", values, start_s=steps, end_s=steps + 1, n_frames=len(values))
    return time.perf_counter() - start


def store_reader(path: Path, check: str) -> Reader:
    store = open_store(path, check=check)

    def read(numbers: list[int]) -> np.ndarray:
        return store.read([f"{number:07d}" for number in numbers], "stored").values

    return read


def memmap_reader(path: Path, offsets: np.ndarray, dim: int) -> Reader:
    rows = np.memmap(path, np.float16, "r").reshape(-1, dim)
    return lambda numbers: np.concatenate([rows[offsets[n] : offsets[n + 1]] for n in numbers])


def npy_reader(folder: Path) -> Reader:
    return lambda numbers: np.concatenate([np.load(folder / f"{n}.npy") for n in numbers])


def h5py_reader(path: Path, offsets: np.ndarray) -> Reader:
    import h5py

    rows = h5py.File(path)["tse"]
    return lambda numbers: np.concatenate([rows[offsets[n] : offsets[n + 1]] for n in numbers])


def part_tables(path: Path) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """The store's parts in order, and for every video the number of its part and its first row there."""
    folders = sorted((path / "parts").iterdir())
    part_of, first = [], []
    for number, folder in enumerate(folders):
        part_lengths = json.loads((folder / "COMMIT.json").read_text())["lengths"]
        part_of += [number] * len(part_lengths)
        first += np.concatenate([[0], np.cumsum(part_lengths)[:-1]]).astype(int).tolist()
    return folders, np.array(part_of), np.array(first)


def zarr_reader(path: Path, lengths: np.ndarray) -> Reader:
    import zarr

    folders, part_of, first = part_tables(path)
    arrays = [zarr.open_array(folder / "tse", mode="r") for folder in folders]
    return lambda numbers: np.concatenate(
        [arrays[part_of[n]][first[n] : first[n] + lengths[n]] for n in numbers]
    )


def tensorstore_reader(path: Path, lengths: np.ndarray) -> Reader:
    import tensorstore as ts

    folders, part_of, first = part_tables(path)
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    specs = [
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "tse")}} for folder in folders
    ]
    arrays = [ts.open(spec, context=context, read=True).result() for spec in specs]

    def read(numbers: list[int]) -> np.ndarray:
        pending = [arrays[part_of[n]][first[n] : first[n] + lengths[n]].read() for n in numbers]
        return np.concatenate([one.result() for one in pending])

    return read


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def measure(readers: dict[str, Reader], batches: list[list[int]], rounds: int) -> dict[str, float]:
    """Least seconds per batch of each reader; they take turns, so that a busy machine harms all alike."""
    best = dict.fromkeys(readers, float("inf"))
    for _ in range(rounds):
        for name, read in readers.items():
            start = time.perf_counter()
            for batch in batches:
                read(batch)
            best[name] = min(best[name], (time.perf_counter() - start) / len(batches))
    return best


def measure_cold(openers: dict[str, Callable[[], Reader]], batches: list[list[int]]) -> dict[str, float]:
    """Median seconds per batch right after the page cache was dropped; other batches in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in openers}
    for number in range(5):
        for name, opener in openers.items():
            read = opener()
            drop_caches()
            start = time.perf_counter()
            for batch in batches[number::5]:
                read(batch)
            seconds[name].append((time.perf_counter() - start) / len(batches[number::5]))
    return {name: float(np.median(values)) for name, values in seconds.items()}


def opening(path: Path) -> dict[str, float]:
    """Seconds and peak memory of a fresh process that opens a store."""
    code = (
        "import pathlib, re, sys, time\n"
        "from dejavid.store import open_store\n"
        "start = time.perf_counter()\n"
        "store = open_store(sys.argv[1])\n"
        "seconds = time.perf_counter() - start\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(len(store), seconds, int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) / 1024)\n"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(3)
    ]
    n_videos, seconds, megabytes = min(tuple(map(float, answer.split())) for answer in answers)
    return {"videos": n_videos, "seconds": seconds, "peak_MB": megabytes}


def many_videos(path: Path, n_videos: int, n_parts: int) -> None:
    store = create_store(path, feature_dim=1, fingerprint_facts={})
    with store.writer() as writer:
        for number in range(n_videos):
            name = f"class_{number % 400:03d}/video_{number:07d}.mp4"
            writer.append(name, [[number % 100]], start_s=[0], end_s=[1], n_frames=1)
            if number % (n_videos // n_parts) == 0:
                writer.flush()


def run(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    lengths = lengths_of(int(args.gb * 1e9 / 2 / args.dim), rng)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    megabytes = float(offsets[-1]) * args.dim * 2 / 1e6
    result: dict[str, Any] = {"MB": megabytes, "videos": len(lengths), "append_MB_per_s": {}}
    for format in ("zarr", "hdf5"):
        seconds = write_store(root / format, lengths, args.dim, format)
        result["append_MB_per_s"][format] = megabytes / seconds
    with (root / "rows.bin").open("wb") as file:
        for values in videos(lengths, args.dim):
            values.tofile(file)
    (root / "npy").mkdir()
    for number, values in enumerate(videos(lengths, args.dim)):
        np.save(root / "npy" / f"{number}.npy", values)
    import h5py

    with h5py.File(root / "flat.h5", "w") as file:
        rows = np.fromfile(root / "rows.bin", np.float16).reshape(-1, args.dim)
        file.create_dataset("tse", data=rows, chunks=(64, args.dim))
    del rows
    openers: dict[str, Callable[[], Reader]] = {
        "np.memmap": lambda: memmap_reader(root / "rows.bin", offsets, args.dim),
        "store zarr": lambda: store_reader(root / "zarr", "once"),
        "store zarr, check=always": lambda: store_reader(root / "zarr", "always"),
        "store hdf5": lambda: store_reader(root / "hdf5", "once"),
        "tensorstore": lambda: tensorstore_reader(root / "zarr", lengths),
        "zarr-python": lambda: zarr_reader(root / "zarr", lengths),
        "h5py, one file": lambda: h5py_reader(root / "flat.h5", offsets),
        "npy per video": lambda: npy_reader(root / "npy"),
    }
    readers = {name: opener() for name, opener in openers.items()}
    order = rng.permutation(len(lengths)).tolist()
    random_batches = [order[i : i + BATCH] for i in range(0, len(order) // BATCH * BATCH, BATCH)][
        : args.batches
    ]
    in_order = list(range(len(lengths)))
    scan = [in_order[i : i + BATCH] for i in range(0, len(in_order), BATCH)]
    expected = readers["np.memmap"](random_batches[0]).tobytes()
    for name, read in readers.items():
        assert read(random_batches[0]).tobytes() == expected, name
    result["random_ms"] = {name: s * 1e3 for name, s in measure(readers, random_batches, 5).items()}
    per_batch = megabytes / len(scan)
    result["scan_MB_per_s"] = {name: per_batch / s for name, s in measure(readers, scan, 3).items()}
    readers.clear()  # what is mapped stays in memory
    if args.cold:
        del openers["store zarr, check=always"]
        result["cold_random_ms"] = {n: s * 1e3 for n, s in measure_cold(openers, random_batches).items()}
    for name in ("random_ms", "scan_MB_per_s"):
        base = result[name]["np.memmap"]
        ratio = {k: base / v if name == "random_ms" else v / base for k, v in result[name].items()}
        result[f"{name.split('_')[0]}_speed_over_memmap"] = ratio
    start = time.perf_counter()
    report = verify(root / "zarr")
    result["verify_MB_per_s"] = report.n_bytes / 1e6 / (time.perf_counter() - start)
    many_videos(root / "many", args.many, args.parts)
    open_store(root / "many")  # writes the index cache
    result["open"] = {"parts": args.parts, **opening(root / "many")}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.0, help="size of the features")
    parser.add_argument("--dim", type=int, default=1808)
    parser.add_argument("--batches", type=int, default=30, help="random batches per round")
    parser.add_argument(
        "--many", type=int, default=240_000, help="videos of the store whose opening is timed"
    )
    parser.add_argument("--parts", type=int, default=2000, help="and its parts")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        result = run(args, Path(root))
    result["machine"] = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
