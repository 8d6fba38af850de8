"""Parity: whole training runs of the reference, step by step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dejavid.config import TrainSection
from dejavid.train import DejaVidHead, train_head
from dejavid.train.data import PackedSamples
from dejavid.train.loop import evaluate_head

GOLDEN = Path(__file__).parents[1] / "golden" / "dejavid" / "trajectory"
CPU = torch.device("cpu")

# Largest deviation between the reference in float32 and in float64, by variant: train loss, validation loss,
# log-weights, centroids; None where the parameters are not comparable. Tested at ten times these.
EXACT = (3e-7, 1e-6, 3e-6, 3e-5)
LOOSE = (8e-6, 2e-5, 3e-5, 4e-4)
TIES = (4e-3, 2e-2, None, None)  # quantised features, weights 1: rounding decides paths
TOLERANCES = {
    **dict.fromkeys(
        [
            f"JV_{name}"
            for name in ("full", "full_small_lr", "full_w1", "centroid_only_randn", "weight_only_randn")
        ]
        + [f"BM_{name}" for name in ("full", "full_small_lr", "full_mm", "full_livepath")]
        + [f"BM_{name}" for name in ("centroid_only_randn", "weight_only_randn")],
        EXACT,
    ),
    **dict.fromkeys(["JV_centroid_only_w1", "JV_full_livepath", "JV_full_mm"], LOOSE),
    "JV_weight_only_w1": (9e-5, 4e-4, None, None),
    **dict.fromkeys(["BM_full_w1", "BM_centroid_only_w1", "BM_weight_only_w1"], TIES),
}


def split(data, n_train):
    offsets = np.concatenate([[0], np.cumsum(data["lens"])])
    cut = offsets[n_train]
    train = PackedSamples(data["samples"][:cut], offsets[: n_train + 1], data["labels"][:n_train])
    return train, PackedSamples(data["samples"][cut:], offsets[n_train:] - cut, data["labels"][n_train:])


def options_of(golden, backend):
    lr, lr_centroids = float(golden["lr_log_weights"]), float(golden["lr_centroids"])
    learn = "full" if lr and lr_centroids else "weights" if lr else "centroids"
    return TrainSection(
        epochs=5,
        lr=lr or lr_centroids,
        lr_ratio=lr_centroids / lr if lr and lr_centroids else 1.0,
        batch_size=32,
        learn=learn,
        init_log_weights="given",
        logits="standardised",
        label_smoothing=0.0,
        temperature=1.0,
        lr_temperature=0.0,
        weight_decay=0.01,
        log_weight_decay=None,
        device="cpu",
        backend=backend,
    )


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("name", sorted(TOLERANCES))
def test_five_epochs_follow_the_reference(name, backend):
    data, golden = np.load(GOLDEN / f"{name[:2]}_data.npz"), np.load(GOLDEN / f"{name}.npz")
    train, val = split(data, len(data["train"]))
    head = DejaVidHead(
        golden["init_centroids"],
        golden["init_log_weights"],
        step_pattern="classic" if golden["use_mm"] else "no_diagonal",
    )
    live = not golden["use_fixed_path"]
    stale = []

    def measure(epoch, trained):
        # The reference validates on the paths of the epoch's start; ours are fresh.
        trained.train(not live)
        stale.append(evaluate_head(trained, val, CPU))

    # The reference's live-path variant searches with the live parameters at every step.
    hook = head.register_forward_pre_hook(lambda module, _: module.refresh_path()) if live else None
    report = train_head(
        head,
        train,
        val,
        options=options_of(golden, backend),
        order=lambda epoch: torch.tensor(data["orders"][epoch]),
        on_epoch=measure,
    )
    if hook is not None:
        hook.remove()

    loss, val_loss, log_weights, centroids = (None if x is None else 10 * x for x in TOLERANCES[name])
    slack = 2 if TOLERANCES[name] is TIES else 1
    np.testing.assert_allclose(report.losses, golden["train_loss"], atol=loss, rtol=0)
    sizes = np.array([len(part) for part in torch.split(val.labels, 32)])
    golden_val = (golden["val_loss"].reshape(5, -1) * sizes).sum(1) / sizes.sum()
    np.testing.assert_allclose([epoch.loss for epoch in stale], golden_val, atol=val_loss, rtol=0)
    for ours, theirs in (
        ([epoch["train_correct"] for epoch in report.history], golden["train_correct"]),
        ([epoch.correct for epoch in stale], golden["val_correct"]),
        ([epoch["val_correct"] for epoch in report.history], golden["val_correct_fresh"]),
    ):
        assert np.abs(np.array(ours) - theirs).max() <= slack
    np.testing.assert_allclose([epoch["lr"] for epoch in report.history], golden["lr"].max(1), rtol=1e-6)
    if log_weights is not None:
        np.testing.assert_allclose(
            head.log_weights.detach(), golden["final_log_weights"], atol=log_weights, rtol=0
        )
        np.testing.assert_allclose(head.centroids.detach(), golden["final_centroids"], atol=centroids, rtol=0)
