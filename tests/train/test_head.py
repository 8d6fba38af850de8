"""The head: golden logits, its rules at their edges, and its files."""

import json

import numpy as np
import pytest
import torch

from dejavid.errors import ConfigError
from dejavid.train import DejaVidHead
from dejavid.train.head import standardise


def make_head(n_classes=3, **options):
    random = np.random.default_rng(0)
    shape = (n_classes, 4, 5)
    return DejaVidHead(random.normal(size=shape), random.normal(size=shape), backend="torch", **options)


def make_batch(lengths=(3, 7, 1)):
    random = np.random.default_rng(1)
    values = torch.tensor(random.normal(size=(sum(lengths), 5)), dtype=torch.float32)
    return values, torch.tensor([0, *np.cumsum(lengths)])


def test_standardised_logits_have_mean_0_and_deviation_1_over_the_classes():
    logits = make_head(6)(*make_batch())
    np.testing.assert_allclose(logits.detach().mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(logits.detach().std(1), 1, atol=1e-6)


def test_per_step_logits_are_distances_over_cells_and_temperature():
    head = make_head(logits="per_step", temperature=2.0)
    values, offsets = make_batch()
    distances = head.distances(values, offsets)
    cells = torch.tensor([3.0, 7.0, 1.0]) + 4 - 1
    torch.testing.assert_close(head(values, offsets), -distances / cells[:, None] / 2)


def test_equal_distances_and_one_class_give_zero_logits_without_gradient():
    distances = torch.full((2, 3), 7.0, requires_grad=True)
    logits = standardise(distances)
    assert logits.tolist() == [[0, 0, 0], [0, 0, 0]]
    (logits.exp().sum()).backward()
    assert distances.grad.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert standardise(torch.tensor([[5.0]])).tolist() == [[0]]


def test_probabilities_sum_to_one_and_favour_the_nearest():
    head = make_head().eval()
    values, offsets = make_batch()
    probabilities = head.predict_proba(values, offsets)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
    assert torch.equal(probabilities.argmax(1), head.distances(values, offsets).argmin(1))


def test_training_mode_keeps_the_frozen_path_until_it_is_refreshed():
    head = make_head().train()
    values, offsets = make_batch((9, 12))
    with torch.no_grad():
        head.log_weights.normal_(0, 3)
    stale = head.distances(values, offsets)
    fresh = head.eval().distances(values, offsets)
    # The fresh path is the cheapest of all, so no other path costs less.
    assert (stale >= fresh - 1e-3).all()
    assert (stale > fresh + 1e-3).any()
    head.train().refresh_path()
    torch.testing.assert_close(head.distances(values, offsets), fresh)


def test_saved_head_gives_the_same_logits(tmp_path):
    head = make_head(
        class_names=["a", "b", "c"], logits="per_step", step_pattern="classic", temperature=0.3
    ).eval()
    head.fingerprints = {"extract_fp": "12ab"}
    head.metrics = {"val_accuracy": 0.5}
    head.save(tmp_path)
    loaded = DejaVidHead.load(tmp_path, backend="torch")
    assert torch.equal(loaded(*make_batch()), head(*make_batch()))
    assert not loaded.training
    assert (loaded.class_names, loaded.fingerprints, loaded.metrics) == (
        ("a", "b", "c"),
        {"extract_fp": "12ab"},
        {"val_accuracy": 0.5},
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.json", "head.safetensors"]


@pytest.mark.parametrize(
    "damage", ["card missing", "card cut", "tensors missing", "tensors of another head", "newer"]
)
def test_damaged_heads_are_refused(tmp_path, damage):
    make_head().save(tmp_path)
    card, tensors = tmp_path / "head.json", tmp_path / "head.safetensors"
    if damage == "card missing":
        card.unlink()
    elif damage == "card cut":
        card.write_text(card.read_text()[:50])
    elif damage == "tensors missing":
        tensors.unlink()
    elif damage == "newer":
        card.write_text(json.dumps(json.loads(card.read_text()) | {"schema": 99}))
    else:
        other = tmp_path / "other"
        DejaVidHead(np.ones((3, 4, 5))).save(other)
        tensors.write_bytes((other / "head.safetensors").read_bytes())
    with pytest.raises(ConfigError) as caught:
        DejaVidHead.load(tmp_path)
    assert str(tmp_path) in caught.value.where


@pytest.mark.parametrize(
    "arguments",
    [
        {"centroids": np.ones((3, 4))},
        {"centroids": np.ones((3, 0, 4))},
        {"centroids": np.ones((3, 2, 4)), "log_weights": np.ones((3, 2, 5))},
        {"centroids": np.full((3, 2, 4), np.nan)},
        {"centroids": np.ones((3, 2, 4)), "class_names": ["a", "b"]},
        {"centroids": np.ones((3, 2, 4)), "class_names": ["a", "b", "a"]},
        {"centroids": np.ones((3, 2, 4)), "logits": "softmax"},
        {"centroids": np.ones((3, 2, 4)), "step_pattern": "mm"},
        {"centroids": np.ones((3, 2, 4)), "temperature": 0.0},
    ],
)
def test_impossible_heads_are_refused(arguments):
    with pytest.raises(ConfigError):
        DejaVidHead(**arguments)
