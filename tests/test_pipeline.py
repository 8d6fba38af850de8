"""The stages after extraction, on a store written directly: what is skipped, redone, refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from dejavid.config import Config, load_config
from dejavid.errors import ConfigError, DejaVidError, ManifestError, StoreVersionError
from dejavid.pipeline import StageRecord, StageReport, evaluate_stage, head_stages
from dejavid.store import create_store

FACTS = {"encoder": "toy", "hop": 8}
CLASSES = ("down", "up")
FEATURES = 6


def _tse(label: str, rng: np.random.Generator) -> np.ndarray:
    """A ramp, rising or falling: equal in the mean, different in order."""
    steps = rng.integers(5, 12)
    ramp = np.linspace(-1, 1, steps)[:, None] * np.ones(FEATURES)
    noise = rng.normal(scale=0.05, size=(steps, FEATURES))
    return ((ramp if label == "up" else -ramp) + noise).astype(np.float32)


def _write_manifest(path: Path, rows: list[tuple[str, str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("video_id", "path", "label", "split"))
        writer.writerows((i, f"{i}.mp4", label, split) for i, label, split in rows)


def _rows() -> list[tuple[str, str, str]]:
    return [
        (f"{split}-{label}-{number}", label, split)
        for split, count in (("train", 8), ("val", 4))
        for label in CLASSES
        for number in range(count)
    ]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run folder with a manifest and a store of 24 TSEs."""
    rows = _rows()
    _write_manifest(tmp_path / "videos.csv", rows)
    config = load_config(
        None,
        [
            f"run.dir={tmp_path / 'run'}",
            f"manifest.path={tmp_path / 'videos.csv'}",
            "train.epochs=6",
            "train.batch_size=8",
            "train.lr=0.1",
            "train.backend=torch",
            "centroids.length=4",
        ],
    )
    _fill(config, rows)
    return config


def _fill(config: Config, rows: list[tuple[str, str, str]]) -> None:
    rng = np.random.default_rng(0)
    store = create_store(config.store_path, feature_dim=FEATURES, fingerprint_facts=FACTS, dtype="float32")
    with store.writer() as writer:
        for video_id, label, _ in rows:
            values = _tse(label, rng)
            seconds = np.arange(len(values), dtype=np.float32)
            writer.append(video_id, values, start_s=seconds, end_s=seconds + 1, n_frames=len(values) * 8)


def _with(config: Config, **train: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def _train(config: Config, *, resume: bool = False) -> dict[str, StageReport]:
    return {report.name: report for report in head_stages(config, resume=resume, progress=False)}


def test_order_is_learned_and_the_mean_is_blind(config: Config) -> None:
    _train(config)
    report = evaluate_stage(config)
    written = json.loads((config.run.dir / "results.json").read_text())
    methods = written["methods"]
    assert methods["dejavid"]["top1"] == 1.0
    assert methods["nearest_centroid"]["top1"] == 1.0
    assert methods["mean_pool"]["top1"] < 0.9
    assert {(m["n_scored"], m["n_split"]) for m in methods.values()} == {(8, 8)}
    assert config.run.dir / "results.json" in report.paths


def test_finished_stages_are_skipped(config: Config) -> None:
    first, second = _train(config), _train(config)
    assert not any(report.skipped for report in first.values())
    assert all(report.skipped for report in second.values())
    assert second["train"].data == first["train"].data


def test_a_training_key_retrains_the_head_only(config: Config) -> None:
    _train(config)
    again = _train(_with(config, lr=0.05))
    assert again["centroids"].skipped
    assert not again["train"].skipped


def test_another_backend_is_no_reason_to_train_again(config: Config) -> None:
    _train(config)
    assert all(report.skipped for report in _train(_with(config, backend="cpu", data="stream")).values())


def test_centroids_do_not_see_the_videos_that_are_held_out(config: Config) -> None:
    report = _train(_with(config, holdout=0.25, patience=2))["centroids"]
    assert "from 12 videos" in report.summary  # of 16: two of each class are held out


def test_the_old_head_is_kept_aside(config: Config) -> None:
    _train(config)
    before = (config.head_path / "head.safetensors").read_bytes()
    report = _train(_with(config, lr=0.05))["train"]
    aside = config.run.dir / "head.old-1"
    assert (aside / "head.safetensors").read_bytes() == before
    assert str(aside) in report.summary


def test_a_damaged_result_is_made_again(config: Config) -> None:
    _train(config)
    centroids = config.run.dir / "centroids.safetensors"
    good = centroids.read_bytes()
    centroids.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    again = _train(config)
    assert not again["centroids"].skipped
    assert centroids.read_bytes() == good


def test_a_relabelled_video_retrains(config: Config) -> None:
    _train(config)
    rows = _rows()
    rows[0] = (rows[0][0], "up", "train")
    _write_manifest(config.manifest.path, rows)
    assert not any(report.skipped for report in _train(config).values())


def test_videos_without_a_tse_count_as_wrong(config: Config) -> None:
    _train(config)
    _write_manifest(config.manifest.path, [*_rows(), ("val-lost", "up", "val"), ("val-gone", "down", "val")])
    wrong = evaluate_stage(config).data["methods"]["dejavid"]
    assert (wrong["n_scored"], wrong["n_split"], wrong["top1"]) == (8, 10, 0.8)
    skip = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"missing": "skip"})})
    assert evaluate_stage(skip).data["methods"]["dejavid"]["top1"] == 1.0


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([*_rows(), ("val-x", "sideways", "val")], None),  # known only without a TSE: nothing to score
        ([r if r[0] != "val-up-0" else (r[0], "sideways", "val") for r in _rows()], "sideways"),
        ([r for r in _rows() if r[2] == "train"], "no video of split 'val'"),
    ],
)
def test_labels_and_splits_that_do_not_fit(
    config: Config, rows: list[tuple[str, str, str]], part: str | None
) -> None:
    _train(config)
    _write_manifest(config.manifest.path, rows)
    if part is None:
        assert evaluate_stage(config).data["methods"]["dejavid"]["n_split"] == 9
        return
    with pytest.raises(ManifestError) as caught:
        evaluate_stage(config)
    assert part in str(caught.value)


def test_a_class_without_training_videos_is_named(config: Config) -> None:
    _write_manifest(config.manifest.path, [*_rows(), ("train-lost", "sideways", "train")])
    with pytest.raises(ConfigError, match="sideways"):
        _train(config)


def test_a_head_of_another_store_is_refused(config: Config, tmp_path: Path) -> None:
    _train(config)
    other = config.model_copy(
        update={"store": config.store.model_copy(update={"path": tmp_path / "other_store"})}
    )
    store = create_store(
        other.store_path, feature_dim=FEATURES, fingerprint_facts={**FACTS, "hop": 4}, dtype="float32"
    )
    with store.writer() as writer:
        seconds = np.zeros(5, dtype=np.float32)
        for video_id, _, _ in _rows():
            writer.append(
                video_id, np.ones((5, FEATURES), np.float32), start_s=seconds, end_s=seconds, n_frames=9
            )
    with pytest.raises(StoreVersionError) as caught:
        evaluate_stage(other)
    assert store.fingerprint in str(caught.value)


def test_evaluating_before_training_says_so(config: Config) -> None:
    with pytest.raises(DejaVidError) as caught:
        evaluate_stage(config)
    assert "train" in caught.value.fix


def test_an_unknown_baseline_is_named(config: Config) -> None:
    wrong = config.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"baselines": ("mean_pol",)})}
    )
    with pytest.raises(ConfigError, match="mean_pol"):
        evaluate_stage(wrong)


def test_a_damaged_record_only_costs_the_work(tmp_path: Path) -> None:
    record = StageRecord(tmp_path, "train")
    output = tmp_path / "result"
    output.write_bytes(b"x")
    record.write({"a": 1}, [output], {})
    assert record.stale({"a": 1}) is None
    assert "a: 1 != 2" in str(record.stale({"a": 2}))
    record.path.write_text("{")
    assert "damaged" in str(record.stale({"a": 1}))
