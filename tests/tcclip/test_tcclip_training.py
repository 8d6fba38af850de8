"""Training of TC-CLIP through the command: what it leaves, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Command, Result
from numbered_videos import write_video
from numpy.typing import NDArray
from safetensors.torch import load_file

from dejavid.checkpoint import FILE
from dejavid.config import load_config
from dejavid.distributed import World
from dejavid.errors import Preempted
from dejavid.extract.encoders.base import ClipSpec
from dejavid.extract.encoders.tcclip.convert import convert, load
from dejavid.extract.encoders.tcclip.training import loop
from dejavid.extract.encoders.tcclip.training.learner import Learner
from dejavid.extract.encoders.tcclip.training.videos import micro_batches, read_training_set

# Of the frames: no crop, mirror or colour hides it. Before training the model takes one for the other.
BRIGHT_END = {"zumba": "bottom", "brush_hair": "top"}
SETTINGS = {
    "run.dir": "out",
    "manifest.path": "videos.csv",
    "extract.device": "cpu",
    "extract.workers": 0,
    "tcclip.start": "start",
    "tcclip.epochs": 3,
    "tcclip.warmup_epochs": 1,
    "tcclip.lr": 1e-4,
    "tcclip.lr_min": 1e-6,
    "tcclip.batch_size": 4,
    "tcclip.micro_batch": 2,
    "tcclip.val_clips": 2,
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def make_video(path: Path, bright_end: str, seed: int) -> None:
    noise = np.random.RandomState(seed).randint(-30, 30, (80, 96, 3))
    shade = np.linspace(40, 215, 80)[:, None, None]

    def frame(number: int) -> NDArray[np.uint8]:
        shown = shade if bright_end == "bottom" else shade[::-1]
        return np.clip(shown + np.roll(noise, 3 * number, axis=1), 0, 255).astype(np.uint8)

    write_video(path, 10, size=(96, 80), frame=frame)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ten videos of two classes, 8 to train on and 2 to choose by, and their manifest."""
    folder = tmp_path_factory.mktemp("training")
    rows = ["video_id,path,label,split"]
    for label, bright_end in BRIGHT_END.items():
        for number in range(5):
            make_video(folder / f"{label}{number}.mp4", bright_end, number)
            rows.append(f"{label}{number},{label}{number}.mp4,{label},{'train' if number < 4 else 'val'}")
    (folder / "videos.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def models(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that have seen nothing but CLIP: start, and vifi without any discrete choice."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    changes = {"method": "tcclip", "n_frames": 4, "n_context": 5, "merged_per_round": 3, "prompt_levels": [3]}
    convert(None, base, folder / "start", changes=changes)
    convert(None, base, folder / "vifi", changes={"method": "vifi_clip", "n_frames": 4})
    return folder


@pytest.fixture
def dejavid(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, videos: Path, models: Path
) -> Command:
    """The command, with `SETTINGS` and changes of them, in a folder with the videos and the models."""
    for file in (*videos.iterdir(), *models.iterdir()):
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, **changes: object) -> Result:
        settings = assignments(changes) if arguments[0] in ("train", "evaluate") else []
        return command(*arguments, *settings)

    return run


def assignments(changes: dict[str, Any]) -> list[str]:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return [part for key, value in {**SETTINGS, **named}.items() for part in ("--set", f"{key}={value}")]


TRAIN = ("train", "--method", "tcclip", "-q")


def history(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "tcclip" / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"]
    return records


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "tcclip" / "model" / "model.safetensors")


def assert_same_run(left: Path, right: Path) -> None:
    """Equal to the bit: every record, the kept weights, and the whole checkpoint."""
    assert history(left) == history(right)
    for ours, theirs in (
        (weights(left), weights(right)),
        (load_file(left / "tcclip" / FILE), load_file(right / "tcclip" / FILE)),  # the optimiser, all losses
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_from_videos_to_a_model_that_names_them(dejavid: Command, tmp_path: Path, base: str) -> None:
    code, out, err = dejavid(*TRAIN, tcclip__epochs=6, tcclip__lr=3e-4)
    assert code == 0, err
    assert "6 epochs on 8 videos" in out
    records = history(tmp_path / "out")
    assert [record["epoch"] for record in records] == list(range(6))
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    best = max(records, key=lambda record: (record["val_correct"], -record["epoch"]))
    assert (best["val_correct"], best["val_scored"], best["val_total"]) == (2, 2, 2)
    card = json.loads((tmp_path / "out" / "tcclip" / "model" / "tcclip.json").read_text())
    assert card["source"]["epoch"] == best["epoch"]
    assert card["source"]["classes"] == ["brush_hair", "zumba"]

    # The model that was kept, evaluated by itself, has the accuracy that training saw.
    (tmp_path / "c.csv").write_text("id,name\n0,brush_hair\n1,zumba\n")
    code, out, err = dejavid("evaluate", "--zero-shot", "tcclip:out/tcclip/model", "--classes", "c.csv", "-q")
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "zero_shot.json").read_text())
    assert found["base"][0]["summary"]["n_correct"] == 2

    # It is an end of a weight-space ensemble as well.
    ends = ("--checkpoint", "out/tcclip/model", "--base", base)
    code, out, err = dejavid("encoder", "convert", "wise", *ends, "--ensemble", 0.25)
    assert code == 0, err
    name = "clip.visual_projection.weight"
    tuned, plain, mixed = (
        load(tmp_path / folder)[0].state_dict()[name] for folder in ("out/tcclip/model", "start", "wise")
    )
    torch.testing.assert_close(mixed, 0.25 * tuned + 0.75 * plain)

    code, out, err = dejavid(*TRAIN, tcclip__epochs=6, tcclip__lr=3e-4)
    assert (code, "skipped, the model is up to date" in out) == (0, True), err


class Stopping:
    """World of one that is asked to leave when it has been asked whether to for the n-th time."""

    rank, size, is_first = 0, 1, True

    def __init__(self, after: int) -> None:
        self.left = after

    def any(self, flag: bool, device: torch.device) -> bool:
        self.left -= 1
        return self.left == 0

    def sum(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_resumed_to_the_bit_in_the_middle_of_an_epoch(
    dejavid: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    code, _, err = dejavid(*TRAIN, run__dir="one", extract__precision=precision)
    assert code == 0, err

    config = load_config(None, assignments({"run.dir": "two", "extract.precision": precision})[1::2])
    videos = read_training_set(config, shots=0)
    # Asked before an epoch and after each of its two steps.
    for times, place in ((5, "epoch 2, after step 1 of 2"), (3, "epoch 3, after step 0 of 2")):
        with pytest.raises(Preempted, match=f"SIGTERM in {place}"):
            loop.train_tcclip(config, videos, Stopping(times), {"run": 1}, resume=place[6] == "3")  # type: ignore[arg-type]
    report = loop.train_tcclip(config, videos, World(0, 1), {"run": 1}, resume=True)
    assert len(report.losses) == 6
    # The facts that the checkpoints hold differ, nothing else does.
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_kill_during_validation_costs_no_step(
    dejavid: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dejavid(*TRAIN, run__dir="one").code == 0

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    config = load_config(None, assignments({"run.dir": "two"})[1::2])
    videos = read_training_set(config, shots=0)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", kill)
        with pytest.raises(Killed):
            loop.train_tcclip(config, videos, World(0, 1), {"run": 1})
    steps: list[int] = []
    take = Learner.step
    monkeypatch.setattr(Learner, "step", lambda *a, **k: (steps.append(1), take(*a, **k))[1])
    loop.train_tcclip(config, videos, World(0, 1), {"run": 1}, resume=True)
    assert len(steps) == 4  # of the two epochs that were left
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_stopped_command_says_how_to_go_on_and_does(dejavid: Command, tmp_path: Path) -> None:
    """SIGTERM and SIGKILL to the command itself, in the middle of training."""
    code, _, err = dejavid(*TRAIN, run__dir="whole", tcclip__epochs=6)
    assert code == 0, err
    command = [sys.executable, "-m", "dejavid", *TRAIN, "--resume"]
    settings = assignments({"run.dir": "cut", "tcclip.epochs": 6})

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *settings],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            # As many threads as this process: sums of another order have other bits.
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        )

    log = tmp_path / "cut" / "tcclip" / "metrics.jsonl"
    for number, sign in enumerate((signal.SIGTERM, signal.SIGKILL), start=1):
        process = begin()
        while not (log.exists() and len(log.read_text().splitlines()) >= 2 * number):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.send_signal(sign)
        _, err = process.communicate(timeout=100)
        if sign == signal.SIGTERM:
            assert process.returncode == 75, err
            assert "go on with: dejavid train --method tcclip --resume" in err
    code, _, err = dejavid(*TRAIN, "--resume", run__dir="cut", tcclip__epochs=6)
    assert code == 0, err
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


# One step over all training videos, and no blending, which every micro-batch does for itself.
ONE_STEP = {"tcclip.blend": "false", "tcclip.epochs": 1, "tcclip.batch_size": 8}


def gradients(folder: Path) -> dict[str, torch.Tensor]:
    """After one step AdamW's first moments are a tenth of the gradients."""
    return {
        name: value
        for name, value in load_file(folder / "tcclip" / FILE).items()
        if name.endswith(".exp_avg")
    }


def assert_same_gradients(left: Path, right: Path) -> None:
    ours, theirs = gradients(left), gradients(right)
    largest = max(float(value.norm()) for value in theirs.values())
    assert ours.keys() == theirs.keys()
    assert largest > 0.01
    for name, value in theirs.items():
        # Some are zero but for rounding.
        assert float((ours[name] - value).norm()) < 1e-3 * float(value.norm()) + 1e-6 * largest, name


@pytest.mark.parametrize(
    "changes",
    [{"tcclip.micro_batch": 4}, {"tcclip.micro_batch": 1}, {"extract.workers": 2}],
    ids=["accumulated in two", "accumulated one by one", "decoded by processes"],
)
def test_a_step_is_the_sum_of_its_micro_batches(
    dejavid: Command, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = {**ONE_STEP, "tcclip.micro_batch": 8}
    assert dejavid(*TRAIN, **whole)[0] == 0
    assert dejavid(*TRAIN, **{**whole, **changes, "run.dir": "parts"})[0] == 0
    assert_same_gradients(tmp_path / "parts", tmp_path / "out")


@pytest.mark.slow
def test_two_processes_are_one(dejavid: Command, tmp_path: Path) -> None:
    assert dejavid(*TRAIN, **{**ONE_STEP, "tcclip.micro_batch": 4})[0] == 0
    settings = assignments({**ONE_STEP, "run.dir": "two"})
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "dejavid", *TRAIN, *settings],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 epochs on 8 videos") == 1
    assert_same_gradients(tmp_path / "two", tmp_path / "out")
    one, two = history(tmp_path / "out")[0], history(tmp_path / "two")[0]
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    assert (two["val_correct"], two["val_scored"]) == (one["val_correct"], one["val_scored"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("start", ["start", "vifi"])
def test_every_precision_learns(dejavid: Command, tmp_path: Path, start: str, precision: str) -> None:
    """In float16 the first steps may be left out, until the loss's scale fits."""
    changes = {"tcclip.start": start, "tcclip.blend": "false", "tcclip.epochs": 10, "tcclip.lr": 2e-5}
    code, _, err = dejavid(*TRAIN, **changes, **{"extract.precision": precision})
    assert code == 0, err
    losses = [record["train_loss"] for record in history(tmp_path / "out")]
    assert losses[-1] < 0.3 * losses[0]
    records = history(tmp_path / "out")
    assert (records[0]["val_correct"], records[-1]["val_correct"]) == (0, 2)
    floating = [value for value in weights(tmp_path / "out").values() if value.is_floating_point()]
    assert all(value.dtype == torch.float32 for value in floating)


def test_micro_batches_share_out_one_order(videos: Path) -> None:
    changes = {"manifest.path": str(videos / "videos.csv"), "tcclip.micro_batch": 1}
    config = load_config(None, assignments(changes)[1::2])
    found = read_training_set(config, shots=0).train

    spec = ClipSpec(4, 56, 56, short_side=64)

    def clips(rank: int, size: int, first: int = 0) -> list[torch.Tensor]:
        batches = micro_batches(found, config, spec, World(rank, size), epoch=1, first=first, count=8 // size)
        return [batch.clips for batch in batches]

    alone = clips(0, 1)
    assert len(alone) == 8
    together = [clip for pair in zip(clips(0, 2), clips(1, 2), strict=True) for clip in pair]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone[5:], clips(0, 1, first=5), strict=True))


def test_broken_videos_are_left_out_and_told(dejavid: Command, tmp_path: Path) -> None:
    for name in ("zumba1.mp4", "zumba4.mp4"):
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(b"no video at all")
    code, out, err = dejavid(*TRAIN, extract__max_failed=1)
    assert code == 0, err
    assert "1 could not be decoded" in out
    records = history(tmp_path / "out")
    assert [record["failed"] for record in records] == [1, 1, 1]
    assert all((record["val_scored"], record["val_total"]) == (1, 2) for record in records)
    ledger = "".join(p.read_text() for p in (tmp_path / "out" / "tcclip" / "failed").iterdir())
    assert {json.loads(line)["video_id"] for line in ledger.splitlines()} == {"zumba1", "zumba4"}

    code, out, err = dejavid(*TRAIN, run__dir="strict")
    assert code == 4
    assert "1 of 8 videos failed, more than extract.max_failed = 0.05" in err
    assert len(history(tmp_path / "strict")) == 1
    # Nor does a run that is over become good by being resumed.
    for more in ((), ("--resume",)):
        code, _, err = dejavid(*TRAIN, *more, run__dir="over", tcclip__epochs=1)
        assert (code, "1 of 8 videos failed" in err) == (4, True)
    code, out, err = dejavid(*TRAIN, "--resume", run__dir="over", tcclip__epochs=1, extract__max_failed=1)
    assert (code, "1 could not be decoded" in out) == (0, True), err
    # A micro-batch of nothing but broken videos has no say, and takes its step.
    code, out, err = dejavid(*TRAIN, run__dir="single", tcclip__micro_batch=1, extract__max_failed=1)
    assert code == 0, err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tcclip__start": "null"}, "there is no model to start from"),
        ({"tcclip__start": "nowhere"}, "no model of this family"),
        ({"tcclip__batch_size": 3}, "no whole number of micro-batches of 2 in 1 processes"),
        ({"tcclip__batch_size": 16}, "8 training videos are fewer than one batch of 16"),
        ({"tcclip__split": "test"}, "no video is in split 'test'"),
        ({"tcclip__classes": "one.csv"}, "there is one class only"),
        ({"tcclip__classes": "other.csv"}, "1 labels are not among the 2 classes: 'brush_hair'"),
        ({"tcclip__lr_min": 1}, "lr_min = 1 is above lr"),
        ({"tcclip__shots": 1}, "2 training videos are fewer than one batch of 4"),
        ({"extract__device": "cuda:7"}, "device 'cuda:7' is not usable here"),
        ({"manifest__path": "none.csv"}, "none.csv"),
    ],
)
def test_what_is_refused(dejavid: Command, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "one.csv").write_text("id,name\n0,zumba\n")
    (tmp_path / "other.csv").write_text("id,name\n0,zumba\n1,falling down\n")
    code, _, err = dejavid(*TRAIN, **changes)
    assert (code, message in err) == (3, True), err
    assert not (tmp_path / "out" / "tcclip" / FILE).exists()


def test_another_run_in_the_folder_is_moved_aside(dejavid: Command, tmp_path: Path) -> None:
    assert dejavid(*TRAIN, tcclip__epochs=1)[0] == 0
    before = weights(tmp_path / "out")
    code, out, err = dejavid(*TRAIN, tcclip__epochs=1, run__seed=2)
    assert code == 0, err
    assert "is now in out/tcclip.old-1" in out
    aside = load_file(tmp_path / "out" / "tcclip.old-1" / "model" / "model.safetensors")
    assert all(torch.equal(aside[name], before[name]) for name in before)


def test_a_loss_that_is_no_number_ends_the_run(dejavid: Command) -> None:
    code, _, err = dejavid(*TRAIN, tcclip__lr=1e30, tcclip__warmup_epochs=0)
    assert (code, "the loss is nan" in err and "lower tcclip.lr" in err) == (3, True), err


def test_without_a_split_to_choose_by_the_last_epoch_is_kept(dejavid: Command, tmp_path: Path) -> None:
    code, _, err = dejavid(*TRAIN, tcclip__split="null", tcclip__freeze="backbone")
    assert code == 0, err
    assert not any("val_top1" in record for record in history(tmp_path / "out"))
    state, start = weights(tmp_path / "out"), load_file(tmp_path / "start" / "model.safetensors")
    changed = {name for name in state if not torch.equal(state[name], start[name])}
    assert "prompt_vectors" in changed
    assert not any(name.startswith(("clip.vision_model.", "clip.text_model.")) for name in changed)


def test_every_few_epochs(dejavid: Command, tmp_path: Path) -> None:
    code, _, err = dejavid(*TRAIN, tcclip__epochs=7, tcclip__validate_every=3)
    assert code == 0, err
    validated = [record["epoch"] for record in history(tmp_path / "out") if "val_top1" in record]
    assert validated == [0, 2, 5, 6]
