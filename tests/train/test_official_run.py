"""The reference's whole program, end to end: from its data files to the parameters that it saved."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dejavid.config import load_config
from dejavid.train import DejaVidHead, train_head
from dejavid.train.data import PackedSamples, epoch_order
from dejavid.train.presets import PARITY

GOLDEN = Path(__file__).parents[1] / "golden" / "dejavid" / "official_format"


def load_split(folder, split):
    expected = json.loads((folder / "expected.json").read_text())
    rows = expected["splits"][split]
    tses = []
    for row in rows:
        loaded = torch.load(folder / "feats" / row["file"], weights_only=True)
        tses.append((loaded[row["id"]] if isinstance(loaded, dict) else loaded).float())
    offsets = np.cumsum([0, *(len(tse) for tse in tses)])
    return PackedSamples(torch.cat(tses), offsets, [row["label"] for row in rows]), expected


@pytest.mark.parametrize("name", ["tensor_per_file", "dict_per_file"])
def test_the_order_of_training_is_that_of_its_sampler(name):
    samples, expected = load_split(GOLDEN / name, "train")
    for epoch in range(3):
        (order,) = expected["sampler_train"][f"world1_epoch{epoch}"]
        assert epoch_order(len(samples.labels), 0, epoch).tolist() == order


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("name", ["tensor_per_file", "dict_per_file"])
def test_the_parity_preset_reproduces_a_run(name, backend):
    train, _ = load_split(GOLDEN / name, "train")
    val, _ = load_split(GOLDEN / name, "val")
    golden = np.load(GOLDEN / name / "run" / "expected.npz")
    accuracies = json.loads((GOLDEN / name / "run" / "expected.json").read_text())["epochs"]
    changes = ["train.epochs=2", "train.batch_size=4", "train.device=cpu", f"train.backend={backend}"]
    config = load_config(None, [*PARITY, *changes])
    head = DejaVidHead(golden["init_centroids"])
    report = train_head(head, train, val, options=config.train, seed=1337)
    assert [record["train_accuracy"] for record in report.history] == [row["train_acc"] for row in accuracies]
    np.testing.assert_allclose(head.log_weights.detach(), golden["final_log_weights"], atol=3e-5)
    np.testing.assert_allclose(head.centroids.detach(), golden["final_centroids"], atol=3e-4)
