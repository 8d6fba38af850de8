"""The temperature set on held-out samples: likelier labels, the same predictions, never infinitely sure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from dejavid.config import TrainSection
from dejavid.train import DejaVidClassifier, DejaVidHead, train_head
from dejavid.train.calibration import calibrate_temperature
from dejavid.train.data import PackedSamples

CPU = torch.device("cpu")


def make_samples(n: int, noise: float, seed: int, n_classes: int = 3) -> PackedSamples:
    """Series around the number of their class."""
    random = np.random.default_rng(seed)
    labels, lengths = np.arange(n) % n_classes, random.integers(2, 6, n)
    rows = [label + noise * random.normal(size=(m, 4)) for label, m in zip(labels, lengths, strict=True)]
    return PackedSamples(np.concatenate(rows).astype(np.float32), np.cumsum([0, *lengths]), labels)


def make_head(temperature: float = 1.0, **options: str) -> DejaVidHead:
    centroids = np.arange(3.0)[:, None, None] * np.ones((3, 2, 4))
    return DejaVidHead(centroids, temperature=temperature, backend="torch", **options).eval()


def loss(head: DejaVidHead, samples: PackedSamples) -> float:
    return float(cross_entropy(head(samples.values, samples.offsets).detach(), samples.labels))


@pytest.mark.parametrize("logits", ["per_step", "standardised"])
def test_the_temperature_is_that_of_the_least_loss(logits: str) -> None:
    held, head = make_samples(60, 3.0, seed=0), make_head(0.01, logits=logits)
    order = head(held.values, held.offsets).argsort(1)
    calibrate_temperature(head, held, CPU)
    ordered = head(held.values, held.offsets).gather(1, order)
    assert (ordered.diff(dim=1) >= 0).all()  # rounding may make equal what was nearly so
    found, least = head.log_temperature.item(), smoothed_loss(head, held)
    for step in (-0.05, 0.05):
        head.log_temperature.data.fill_(found + step)
        assert smoothed_loss(head, held) > least


def smoothed_loss(head: DejaVidHead, samples: PackedSamples) -> float:
    logits = head(samples.values, samples.offsets).double()
    return float(
        cross_entropy(logits.detach(), samples.labels, label_smoothing=1 / (len(samples.labels) + 1))
    )


def test_new_samples_are_likelier_too() -> None:
    head, new = make_head(0.01), make_samples(300, 3.0, seed=1)
    before = loss(head, new)
    calibrate_temperature(head, make_samples(60, 3.0, seed=0), CPU)
    assert loss(head, new) < 0.5 * before


def test_where_it_starts_does_not_matter() -> None:
    held = make_samples(30, 3.0, seed=0)
    heads = make_head(0.001), make_head(50.0)
    for head in heads:
        calibrate_temperature(head, held, CPU)
    assert heads[0].log_temperature == heads[1].log_temperature


def test_being_always_right_is_not_being_infinitely_sure() -> None:
    held, head = make_samples(30, 0.01, seed=0), make_head()
    calibrate_temperature(head, held, CPU)
    sure = head.predict_proba(held.values, held.offsets).amax(1)
    assert 0.9 < sure.mean() < 1 - 1 / 60
    assert sure.max() < 0.9999


def test_being_always_wrong_keeps_the_order_of_the_classes() -> None:
    held, head = make_samples(30, 0.01, seed=0), make_head()
    wrong = PackedSamples(held.values, held.offsets, (held.labels + 1) % 3)
    before = head.predict_proba(held.values, held.offsets).argsort(1)
    calibrate_temperature(head, wrong, CPU)
    after = head.predict_proba(held.values, held.offsets)
    assert torch.equal(after.argsort(1), before)
    assert after.max() < 0.34


def test_training_ends_with_it_and_resuming_a_finished_run_keeps_it(tmp_path: Path) -> None:
    options = TrainSection(epochs=3, batch_size=8, device="cpu", backend="torch")
    heads = {}
    for calibrate, resume in ((False, False), (True, False), (True, True)):
        head = make_head()
        train_head(
            head,
            make_samples(30, 1.0, seed=0),
            make_samples(30, 1.0, seed=1),
            options=options.model_copy(update={"calibrate": calibrate}),
            out_dir=tmp_path / str(calibrate),
            resume=resume,
        )
        heads[calibrate, resume] = head
    plain, first, again = heads.values()
    assert torch.equal(plain.centroids, first.centroids)
    assert plain.log_temperature != first.log_temperature
    assert first.log_temperature == again.log_temperature
    assert DejaVidHead.load(tmp_path / "True").log_temperature == first.log_temperature


def test_the_classifier_has_it() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    X = [label + rng.normal(size=(5, 3)) for label in y]
    given = {
        "epochs": 3,
        "n_steps": 2,
        "holdout": 0.5,
        "backend": "torch",
        "device": "cpu",
        "random_state": 0,
    }
    plain, calibrated = (DejaVidClassifier(calibrate=c, **given).fit(X, y) for c in (False, True))
    assert (plain.predict(X) == calibrated.predict(X)).all()
    assert not np.allclose(plain.predict_proba(X), calibrated.predict_proba(X))
