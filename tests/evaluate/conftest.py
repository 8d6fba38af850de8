"""A small run without videos: a store of ramps, a head trained on it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from dejavid.config import Config, load_config
from dejavid.pipeline import head_stages
from dejavid.store import create_store

N_EMBEDDING = 6
CLASSES = ("down", "up", "up & <b>down</b>")  # names that would be markup if a page did not escape them
FACTS = {
    "encoder": "toy",
    "windowing": {"rows": "embedding+logits", "merge_views": "mean", "crops": "center"},
}


def shape_of(label: str, n_steps: int) -> np.ndarray:
    ramp = np.linspace(-1, 1, n_steps)
    return {"down": -ramp, "up": ramp, "up & <b>down</b>": 1 - 2 * np.abs(ramp)}[label]


def make_tse(label: str, rng: np.random.Generator, n_steps: int) -> np.ndarray:
    """An embedding whose course over time tells the class, then logits of a weak classifier."""
    course = shape_of(label, n_steps)[:, None] * np.linspace(0.2, 1, N_EMBEDDING)
    embedding = course + rng.normal(scale=0.15, size=(n_steps, N_EMBEDDING))
    logits = rng.normal(size=(n_steps, len(CLASSES)))
    logits[:, sorted(CLASSES).index(label)] += 0.5
    return np.concatenate([embedding, logits], axis=1).astype(np.float32)


def write_manifest(path: Path, rows: list[tuple[str, str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("video_id", "path", "label", "split"))
        writer.writerows((video_id, f"{video_id}.mp4", label, split) for video_id, label, split in rows)


def manifest_rows(n_train: int = 10, n_val: int = 6) -> list[tuple[str, str, str]]:
    return [
        (f"{split}-{number}-{index}", label, split)
        for split, count in (("train", n_train), ("val", n_val))
        for index, label in enumerate(CLASSES)
        for number in range(count)
    ]


def fill_store(config: Config, rows: list[tuple[str, str, str]]) -> None:
    rng = np.random.default_rng(0)
    store = create_store(
        config.store_path,
        feature_dim=N_EMBEDDING + len(CLASSES),
        fingerprint_facts=FACTS,
        dtype="float32",
    )
    with store.writer() as writer:
        for video_id, label, _ in rows:
            values = make_tse(label, rng, int(rng.integers(5, 12)))
            start = 0.5 * np.arange(len(values))
            views = np.full((6, len(CLASSES)), 0.2, np.float32)
            views[:, sorted(CLASSES).index(label)] += 0.4
            writer.append(
                video_id,
                values,
                start_s=start,
                end_s=start + 1,
                n_frames=8 * len(values),
                extras={"official_probabilities": views},
            )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration of a finished run: 30 training and 18 validation videos of 3 classes."""
    folder = tmp_path_factory.mktemp("run")
    rows = manifest_rows()
    write_manifest(folder / "videos.csv", rows)
    config = load_config(
        None,
        [
            f"run.dir={folder / 'run'}",
            f"manifest.path={folder / 'videos.csv'}",
            "train.epochs=6",
            "train.batch_size=8",
            "train.lr=0.1",
            "centroids.length=4",
        ],
    )
    fill_store(config, rows)
    for _ in head_stages(config, progress=False):
        pass
    return config
