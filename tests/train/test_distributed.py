"""Two gloo processes against one, through the Python API and through torchrun and the command line."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dejavid.checkpoint import FILE
from dejavid.store import create_store
from dejavid.train import DejaVidHead
from dejavid.train.data import PackedSamples, batches, epoch_order
from dejavid.train.inputs import InputLayer

_WORKER = """
import sys, json
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from test_loop import OPTIONS, make_head, make_samples, train_head
from dejavid.distributed import joined
with joined(torch.device("cpu")) as world:
    assert world.size == {size}
    changes = {{"batch_size": 3, "clip_norm": 1.0, "lr_temperature": 0.01, "calibrate": {calibrate}}}
    options = OPTIONS.model_copy(update=changes)
    head = make_head()
    report = train_head(head, make_samples(), make_samples(n=7, seed=1), options=options, out_dir={out!r})
    torch.save([head.state_dict(), report.losses, report.history], f"{out}/result{{world.rank}}.pt")
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_workers(out, size, calibrate):
    out.mkdir()
    code = _WORKER.format(here=str(Path(__file__).parent), out=str(out), size=size, calibrate=calibrate)
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    return [torch.load(out / f"result{rank}.pt", weights_only=True) for rank in range(size)]


def test_shares_of_two_processes_are_those_of_one():
    samples, inputs = PackedSamples(torch.ones(7, 5), torch.arange(8), torch.arange(7)), InputLayer(5)
    order = epoch_order(7, 0, 0)
    parts = [
        list(batches(samples, order, 3, inputs=inputs, device=torch.device("cpu"), rank=rank, world=2))
        for rank in range(2)
    ]
    for step, both in enumerate(zip(*parts, strict=True)):
        assert sum(float(batch.shares.sum()) for batch in both) == pytest.approx(1)
        counted = [batch.labels[batch.shares > 0] for batch in both]
        wanted = samples.labels[order[3 * step : 3 * step + 3]]
        assert torch.cat(counted).sort().values.tolist() == wanted.sort().values.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("calibrate", [False, True])
def test_two_processes_give_the_result_of_one(tmp_path, calibrate):
    ((alone, losses, history),) = run_workers(tmp_path / "one", 1, calibrate)
    first, second = run_workers(tmp_path / "two", 2, calibrate)
    for name, tensor in alone.items():
        # Adam divides by gradients' sizes, so rounding of tiny gradients grows a little.
        torch.testing.assert_close(first[0][name], tensor, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[0][name], second[0][name])
    np.testing.assert_allclose(first[1], losses, rtol=1e-5)
    for ours, theirs in zip(first[2], history, strict=True):
        assert (ours["train_correct"], ours["val_correct"]) == (
            theirs["train_correct"],
            theirs["val_correct"],
        )
    assert DejaVidHead.load(tmp_path / "two").metrics["train_correct"] == history[-1]["train_correct"]


def make_run(folder, epochs):
    """A store, manifest and configuration: 20 + 9 videos of 3 classes."""
    random = np.random.default_rng(0)
    store = create_store(
        folder / "store", feature_dim=5, fingerprint_facts={"made": "by a test"}, dtype="float32"
    )
    rows = []
    with store.writer() as writer:
        for number in range(29):
            length = int(random.integers(1, 9))
            values = random.normal(size=(length, 5)).astype(np.float32) + number % 3
            times = np.arange(length, dtype=np.float64)
            writer.append(
                f"v{number}",
                values,
                start_s=times,
                end_s=times + 1,
                n_frames=length,
                status="ok",
                extras=None,
            )
            rows.append((f"v{number}", f"v{number}.mp4", f"c{number % 3}", "train" if number < 20 else "val"))
    with (folder / "videos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video_id", "path", "label", "split"), *rows])
    sections = {
        "run": {"dir": "run"},
        "manifest": {"path": "videos.csv"},
        "store": {"path": "store"},
        "centroids": {"length": 3},
        "train": {"epochs": epochs, "batch_size": 4, "device": "cpu", "backend": "torch"},
    }
    (folder / "pipeline.yaml").write_text(json.dumps(sections))


def prepare(folder, epochs):
    folder.mkdir()
    make_run(folder, epochs)


def start(folder, *launcher):
    """Starts or resumes `dejavid train` in `folder`."""
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "dejavid", "train", "--quiet", "--resume"],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def history(folder):
    lines = (folder / "run" / "head" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_torchrun_gives_the_result_of_one_process_also_after_a_worker_was_killed(tmp_path):
    epochs = 60
    prepare(tmp_path / "one", epochs)
    process = start(tmp_path / "one")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors

    prepare(tmp_path / "two", epochs)
    process = start(tmp_path / "two", *TORCHRUN)
    checkpoint = tmp_path / "two" / "run" / "head" / FILE
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    done = len(history(tmp_path / "two"))
    assert done < epochs, "the run was over before it could be disturbed"
    worker = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
    os.kill(int(worker), signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    assert process.returncode != 0
    assert "exitcode: -9" in errors
    process = start(tmp_path / "two", *TORCHRUN)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors

    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert [record["epoch"] for record in two] == list(range(epochs))
    for ours, theirs in zip(two, one, strict=True):
        assert ours["train_correct"] == theirs["train_correct"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
