"""The grid: what is shared, ranked, written, resumed and refused."""

import csv
import json

import numpy as np
import pytest
import torch

from dejavid.config import parse_config
from dejavid.errors import ConfigError
from dejavid.train import DejaVidHead
from dejavid.train import grid as grid_module
from dejavid.train.data import PackedSamples
from dejavid.train.grid import parse_grid, train_grid

CONFIG = parse_config(
    {
        "centroids": {"length": 3, "position": 0},
        "train": {"epochs": 3, "batch_size": 8, "device": "cpu", "backend": "torch"},
    },
    "test",
)
NAMES = ("a", "b", "c")


@pytest.fixture
def samples():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    lengths = random.integers(2, 9, 60)
    rows = [random.normal(size=(t, 4)) + label for t, label in zip(lengths, labels, strict=True)]
    return PackedSamples(torch.tensor(np.concatenate(rows)), np.cumsum([0, *lengths]), labels)


def test_combinations_are_trained_ranked_and_written(samples, tmp_path, monkeypatch):
    fits = []
    fit = grid_module.fit_centroids

    def counted(*arguments, **options):
        fits.append(options["length"])
        return fit(*arguments, **options)

    monkeypatch.setattr(grid_module, "fit_centroids", counted)
    grid = {"centroids.length": [2, 4], "train.lr": [1e-6, 0.05, 0.1]}
    points = train_grid(samples, NAMES, grid, config=CONFIG, out_dir=tmp_path)
    assert fits == [2, 4], "centroids are shared by the learning rates"
    assert len(points) == 6
    assert [point.val_correct for point in points] == sorted((p.val_correct for p in points), reverse=True)
    assert points[0].changes["train.lr"] > 1e-6
    rows = json.loads((tmp_path / "grid.json").read_text())
    table = list(csv.DictReader((tmp_path / "grid.csv").open()))
    assert [row["changes"] for row in rows] == [point.changes for point in points]
    assert [float(row["val_accuracy"]) for row in table] == [point.val_accuracy for point in points]
    head = DejaVidHead.load(points[0].folder)
    assert head.centroids.shape == (3, points[0].changes["centroids.length"], 4)


def test_finished_points_are_not_trained_again(samples, tmp_path, monkeypatch):
    grid = {"train.lr": [0.05, 0.1]}
    first = train_grid(samples, NAMES, grid, config=CONFIG, out_dir=tmp_path)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: pytest.fail("a step was trained"))
    assert train_grid(samples, NAMES, grid, config=CONFIG, out_dir=tmp_path) == first


def test_another_base_configuration_trains_beside_the_first(samples, tmp_path):
    grid = {"train.lr": [0.05]}
    (first,) = train_grid(samples, NAMES, grid, config=CONFIG, out_dir=tmp_path)
    other = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"epochs": 2})})
    (second,) = train_grid(samples, NAMES, grid, config=other, out_dir=tmp_path)
    assert first.folder != second.folder
    assert (first.folder / "head.json").exists()


def test_features_and_step_patterns_are_keys_too(samples, tmp_path):
    grid = {"centroids.features": ["all", "0:2"], "train.step_pattern": ["no_diagonal", "classic"]}
    points = train_grid(samples, NAMES, grid, config=CONFIG, out_dir=tmp_path)
    widths = {
        DejaVidHead.load(p.folder).centroids.shape[2]
        for p in points
        if p.changes["centroids.features"] == "0:2"
    }
    assert widths == {2}


def test_the_grid_is_read_from_strings():
    assert parse_grid(["train.lr=0.03,0.1", "train.learn=full,weights", "centroids.tol=null"]) == {
        "train.lr": [0.03, 0.1],
        "train.learn": ["full", "weights"],
        "centroids.tol": [None],
    }


@pytest.mark.parametrize("item", ["lr=1", "extract.hop=1,2", "train.lr", "train.lr=[1"])
def test_other_strings_are_refused(item):
    with pytest.raises(ConfigError, match=r"--grid|SECTION|YAML"):
        parse_grid([item])


def test_a_wrong_value_stops_the_grid_before_anything_is_trained(samples, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.lr = -1"):
        train_grid(samples, NAMES, {"train.lr": [0.1, -1]}, config=CONFIG, out_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"did you mean 'train\.lr'"):
        train_grid(samples, NAMES, {"train.lrr": [0.1]}, config=CONFIG, out_dir=tmp_path)
    assert not list(tmp_path.iterdir())
