"""The training loop: options, logs, checkpoints, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dejavid.checkpoint import FILE
from dejavid.config import TrainSection
from dejavid.errors import ConfigError
from dejavid.train import DejaVidHead, train_head
from dejavid.train.data import PackedSamples, bucketed, epoch_order, hold_out
from dejavid.train.parameters import learning_rate

OPTIONS = TrainSection(epochs=4, batch_size=8, lr=0.05, label_smoothing=0.0, device="cpu", backend="torch")


def make_samples(n=40, n_classes=3, n_features=5, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    lengths = random.integers(1, 9, n)
    rows = [
        random.normal(size=(length, n_features)) + 2 * label
        for length, label in zip(lengths, labels, strict=True)
    ]
    return PackedSamples(np.concatenate(rows).astype(np.float32), np.cumsum([0, *lengths]), labels)


def make_head(n_classes=3, n_features=5, **options):
    random = np.random.default_rng(7)
    return DejaVidHead(random.normal(size=(n_classes, 4, n_features)), logits="per_step", **options)


def train(options=OPTIONS, head=None, **arguments):
    head = head or make_head()
    return head, train_head(head, make_samples(), options=options, **arguments)


def test_training_lowers_the_loss_and_learns_the_classes():
    val = make_samples(seed=1)
    head, report = train(OPTIONS.model_copy(update={"epochs": 8, "lr": 0.3}))
    assert report.history[-1]["train_loss"] < 0.5 * report.history[0]["train_loss"]
    assert report.history[-1]["train_accuracy"] > 0.9
    accuracy = (head(val.values, val.offsets).argmax(1) == val.labels).double().mean()
    assert accuracy > 0.9


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first, again, other = (train(seed=seed)[1].losses for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("learn", "moved", "still"),
    [("centroids", "centroids", "log_weights"), ("weights", "log_weights", "centroids")],
)
def test_only_what_is_learned_moves(learn, moved, still):
    head = make_head()
    before = {name: parameter.detach().clone() for name, parameter in head.named_parameters()}
    train(OPTIONS.model_copy(update={"learn": learn}), head=head)
    assert not torch.equal(getattr(head, moved), before[moved])
    assert torch.equal(getattr(head, still), before[still])
    assert head.log_temperature.item() != 0  # set from the data, then fixed


def test_tied_weights_stay_equal_over_the_steps_of_a_centroid():
    head, _ = train(OPTIONS.model_copy(update={"tie_weights": True}))
    weights = head.log_weights.detach()
    assert weights.std(1).max() < 1e-6
    assert weights.std(2).min() > 1e-3


def test_log_weight_decay_pulls_the_weights_to_one():
    free, decayed = (
        train(OPTIONS.model_copy(update={"log_weight_decay": decay}))[0].log_weights.abs().mean()
        for decay in (0, 5)
    )
    assert decayed < 0.9 * free


def test_label_smoothing_clipping_warm_up_and_bucketing_change_the_run():
    plain = train()[1].losses
    for change in (
        {"label_smoothing": 0.2},
        {"clip_norm": 1e-3},
        {"warmup_epochs": 2},
        {"bucket_by_length": True},
        {"refresh_every": 4},
        {"lr_temperature": 0.1},
        {"init_log_weights": "normal"},
        {"temperature": 3.0},
    ):
        assert train(OPTIONS.model_copy(update=change))[1].losses != plain, change


def test_the_learning_rate_is_a_cosine_after_a_linear_warm_up():
    assert [learning_rate(epoch, 4, 0) for epoch in range(4)] == pytest.approx(
        [1, 0.853553, 0.5, 0.146447], abs=1e-6
    )
    assert learning_rate(0, 4, 1) == 0.5
    assert learning_rate(1, 4, 1) == learning_rate(1, 4, 0)


def test_logits_begin_at_spread_one_when_the_temperature_is_left_open():
    head = make_head()
    train(OPTIONS.model_copy(update={"epochs": 0}), head=head)
    samples = make_samples()
    with torch.no_grad():
        assert head(samples.values, samples.offsets).std(1).mean().item() == pytest.approx(1, abs=1e-4)


def test_bucketing_keeps_every_sample_and_narrows_batches():
    lengths = torch.randint(1, 100, (1000,), generator=torch.Generator().manual_seed(0))
    order = epoch_order(1000, 0, 0)
    sorted_order = bucketed(order, lengths, 16)
    assert sorted(sorted_order.tolist()) == list(range(1000))
    spread = [
        torch.stack([lengths[b].double().std() for b in o.split(16)]).mean() for o in (order, sorted_order)
    ]
    assert spread[1] < 0.3 * spread[0]


def test_holding_out_keeps_every_class_on_the_training_side():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2])
    kept, held = hold_out(labels, 0.5, seed=0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(61))
    assert labels[held].bincount(minlength=3).tolist() == [25, 5, 0]


def test_files_of_a_run(tmp_path):
    head, report = train(
        OPTIONS.model_copy(update={"tensorboard": True}), val=make_samples(seed=1), out_dir=tmp_path / "head"
    )
    records = [json.loads(line) for line in (tmp_path / "head" / "metrics.jsonl").read_text().splitlines()]
    assert records == report.history
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    loaded = DejaVidHead.load(tmp_path / "head", backend="torch")
    assert torch.equal(loaded.centroids, head.centroids)
    assert loaded.metrics["val_correct"] == records[-1]["val_correct"]
    best = DejaVidHead.load(tmp_path / "head" / "best")
    assert best.metrics["val_correct"] == max(record["val_correct"] for record in records)
    (events,) = (tmp_path / "head" / "tensorboard").iterdir()
    assert b"val_accuracy" in events.read_bytes()


def test_progress_without_a_terminal_is_one_line_per_epoch(capsys):
    train(progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert "resident in memory" in lines[0]
    assert [line.split()[:2] for line in lines[1:]] == [["epoch", f"{epoch}/4"] for epoch in (1, 2, 3, 4)]


def test_patience_stops_and_keeps_the_best_epoch(tmp_path):
    # Validation labels that training cannot reach: the best epoch comes early.
    val = make_samples(seed=1)
    val.labels = val.labels.roll(1)
    options = OPTIONS.model_copy(update={"patience": 2, "epochs": 30, "lr": 0.2})
    head, report = train(options, val=val, out_dir=tmp_path)
    assert len(report.history) < 30
    assert report.kept_epoch == report.best_epoch
    assert len(report.history) - 1 - report.best_epoch == 2
    assert torch.equal(head.centroids, DejaVidHead.load(tmp_path / "best").centroids)


class _StopError(Exception):
    pass


def interrupt_after(epoch):
    def stop(done, head):
        if done == epoch:
            raise _StopError

    return stop


@pytest.mark.parametrize("epoch", [0, 2])
def test_resuming_gives_the_bits_of_an_undisturbed_run(tmp_path, epoch):
    options = OPTIONS.model_copy(update={"lr_temperature": 0.01, "patience": 20})
    val = make_samples(seed=1)
    whole, expected = train(options, val=val)
    with pytest.raises(_StopError):
        train(options, val=val, out_dir=tmp_path, on_epoch=interrupt_after(epoch))
    resumed, report = train(options, val=val, out_dir=tmp_path, resume=True)
    assert report.losses == expected.losses
    assert report.best_epoch == expected.best_epoch
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]


def test_a_finished_run_resumes_to_its_result(tmp_path):
    head, report = train(out_dir=tmp_path)
    again, repeated = train(out_dir=tmp_path, resume=True)
    assert repeated.losses == report.losses
    assert torch.equal(head.centroids, again.centroids)


_SCRIPT = """
import sys, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from test_loop import OPTIONS, make_head, make_samples, train_head
from dejavid.errors import DejaVidError
def slow(epoch, head):
    print(epoch, flush=True)
samples = make_samples()
take = samples.take
def slow_take(positions):
    time.sleep(0.02)
    return take(positions)
samples.take = slow_take
try:
    train_head(make_head(), samples, options=OPTIONS.model_copy(update={{"epochs": 30}}), out_dir={out!r},
               resume={resume}, on_epoch=slow)
except DejaVidError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start(out, resume):
    code = _SCRIPT.format(here=str(Path(__file__).parent), out=str(out), resume=resume)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_killed_process_resumes_to_the_same_bits(tmp_path, how):
    whole = make_head()
    expected = train_head(whole, make_samples(), options=OPTIONS.model_copy(update={"epochs": 30}))
    for epochs_before in (2, 3):
        process = start(tmp_path, resume=epochs_before > 2)
        for _ in range(epochs_before):
            process.stdout.readline()
        time.sleep(0.05)  # into the next epoch
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (75 if how == signal.SIGTERM else -how), errors
        if how == signal.SIGTERM:
            assert "--resume" in errors
    process = start(tmp_path, resume=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    head = DejaVidHead.load(tmp_path)
    assert torch.equal(head.centroids, whole.centroids)
    assert torch.equal(head.log_weights, whole.log_weights)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["train_loss"] for line in lines] == [record["train_loss"] for record in expected.history]


def test_a_run_is_not_overwritten(tmp_path):
    train(out_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="a training run is there already"):
        train(out_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"train.lr: 0.05 != 0.1"):
        train(OPTIONS.model_copy(update={"lr": 0.1}), out_dir=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="class_names"):
        train(head=make_head(class_names=["x", "y", "z"]), out_dir=tmp_path, resume=True)
    checkpoint = tmp_path / FILE
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="no readable checkpoint"):
        train(out_dir=tmp_path, resume=True)


def relabelled(labels):
    samples = make_samples()
    samples.labels = torch.tensor(labels)
    return samples


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train_head(make_head(4), make_samples()), "1 classes have no training sample: 3"),
        (lambda: train_head(make_head(1), relabelled([0] * 40)), "one class only"),
        (lambda: train_head(make_head(2), make_samples()), "labels run from 0 to 2"),
        (lambda: train_head(make_head(n_features=6), make_samples()), "5 features"),
        (
            lambda: train_head(make_head(), make_samples(), make_samples(n_features=4)),
            "validation TSEs have 4",
        ),
        (lambda: train_head(make_head(), make_samples(), resume=True), "nothing to resume"),
        (lambda: train(OPTIONS.model_copy(update={"patience": 3})), "patience needs"),
        (lambda: train(OPTIONS.model_copy(update={"calibrate": True})), "calibrate needs"),
        (lambda: train(OPTIONS.model_copy(update={"device": "cuda:99"})), "cuda:99"),
        (lambda: train_head(make_head(), make_samples().subset(torch.arange(0))), "split is empty"),
        (
            lambda: train_head(DejaVidHead(np.eye(2)[:, None]), make_samples(n_classes=2, n_features=2)),
            "two classes are always",
        ),
    ],
)
def test_bad_input_is_refused_with_its_numbers(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_nan_features_name_their_sample():
    values = np.ones((9, 2), np.float32)
    values[5, 1] = np.nan
    with pytest.raises(ConfigError) as caught:
        PackedSamples(values, [0, 4, 7, 9], [0, 1, 0])
    assert caught.value.where == "training sample 1"


def test_two_classes_train_with_the_default_rule():
    head = make_head(2)
    report = train_head(head, make_samples(n_classes=2), options=OPTIONS)
    assert report.history[-1]["train_loss"] < 0.7 * report.history[0]["train_loss"]
