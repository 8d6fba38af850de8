"""Baselines, the ablation and the files of an evaluation, on a small run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from dejavid.config import Config
from dejavid.errors import ConfigError
from dejavid.evaluate.ablation import centroids_only, full, full_classic
from dejavid.evaluate.baselines import HEAD, METHODS, chosen_methods
from dejavid.evaluate.encoder import encoder_views, mean_logits, oversampling
from dejavid.evaluate.evaluation import (
    PREDICTIONS_FILE,
    Evaluation,
    evaluate,
    markdown,
    read_evaluation,
    results,
    write_evaluation,
)
from dejavid.evaluate.neighbours import knn_dtw, knn_dtw_tslearn
from dejavid.evaluate.task import NotApplicable, Task
from dejavid.pipeline import evaluate_stage, evaluation_task, head_stages


@pytest.fixture(scope="module")
def task(trained: Config) -> Task:
    return evaluation_task(trained)


@pytest.fixture(scope="module")
def evaluation(task: Task) -> Evaluation:
    return evaluate(task, chosen_methods(["all"], ablation=True), optional=True)


def _with(task: Task, **changes: object) -> Task:
    section = task.config.evaluate.model_copy(update=changes)
    config = task.config.model_copy(update={"evaluate": section})
    return Task(**{**vars(task), "config": config})


def test_every_method_scores_every_video(evaluation: Evaluation) -> None:
    assert set(evaluation.summaries) | set(evaluation.skipped) == set(METHODS)
    assert not evaluation.skipped
    for name, summary in evaluation.summaries.items():
        assert (summary.n_scored, summary.n_split) == (18, 18), name
        assert 1 / 3 <= summary.top1 <= 1, name
        assert (summary.nll is not None) == METHODS[name].probabilities, name


def test_methods_that_see_time_win(evaluation: Evaluation) -> None:
    top1 = {name: summary.top1 for name, summary in evaluation.summaries.items()}
    for name in (HEAD, "full", "full_classic", "knn_dtw", "soft_dtw_head", "centroids_only", "weights_only"):
        assert top1[name] >= 0.9, name
    assert max(top1[name] for name in ("mean_pool", "attentive_probe", "mean_logits")) < 0.9


def test_full_is_the_head_of_the_run(evaluation: Evaluation) -> None:
    np.testing.assert_array_equal(evaluation.outcomes["full"].p_true, evaluation.outcomes[HEAD].p_true)


def test_encoder_protocols_by_hand(task: Task) -> None:
    tse = task.store.get(task.ids[0])
    views = tse.extras["official_probabilities"].astype(np.float64)
    np.testing.assert_allclose(np.exp(encoder_views(task)[0]), views.mean(0), rtol=1e-6)
    logits = tse.values[:, -3:].astype(np.float64)
    np.testing.assert_allclose(mean_logits(task)[0], logits.mean(0), rtol=1e-6)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(oversampling(task)[0]), probabilities.mean(0), rtol=1e-6)


def test_encoder_classes_in_another_order(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(reversed(task.split.class_names)), encoding="utf-8")
    turned = mean_logits(_with(task, encoder_classes=path))
    np.testing.assert_array_equal(turned, mean_logits(task)[:, ::-1])
    path.write_text("down\nup\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not among the encoder's"):
        mean_logits(_with(task, encoder_classes=path))
    with pytest.raises(ConfigError, match="cannot read"):
        mean_logits(_with(task, encoder_classes=tmp_path / "none.txt"))


def test_an_encoder_of_other_classes_is_not_applied(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join([*task.split.class_names, *map(str, range(9))]), encoding="utf-8")
    other = _with(task, encoder_classes=path)
    for method in (mean_logits, encoder_views):
        with pytest.raises(NotApplicable):
            method(other)
    found = evaluate(other, ["mean_logits", "nearest_centroid"], optional=True)
    assert list(found.skipped) == ["mean_logits"]
    assert list(found.summaries) == ["nearest_centroid"]


def test_neighbours_agree_with_brute_force(task: Task) -> None:
    """L1 DTW with the diagonal, by the definition."""

    def dtw(a: np.ndarray, b: np.ndarray) -> float:
        cost = np.abs(a[:, None] - b[None]).sum(2)
        total = np.full((len(a) + 1, len(b) + 1), np.inf)
        total[0, 0] = 0
        for i, j in np.ndindex(cost.shape):
            total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
        return float(total[-1, -1])

    train = [task.store.get(video_id).values for video_id in task.train_ids]
    scores = knn_dtw(task)
    for row, video_id in enumerate(task.ids[:5]):
        query = task.store.get(video_id).values
        nearest = int(np.argmin([dtw(query, series) for series in train]))
        assert scores[row].argmax() == task.train_targets[nearest]


def test_more_neighbours_vote(task: Task) -> None:
    votes = np.floor(knn_dtw(_with(task, neighbours=5)) - 1e-9)
    assert (votes.sum(1) <= 5).all()
    assert votes.max() > 1
    agree = knn_dtw_tslearn(task).argmax(1) == knn_dtw(task).argmax(1)
    assert agree.mean() > 0.8


def test_the_ablation_trains_on_what_the_head_was_trained_on(trained: Config, tmp_path: Path) -> None:
    """Also when a part of the training split was held out to choose the epoch on."""
    train = trained.train.model_copy(update={"holdout": 0.3, "patience": 2})
    run = trained.run.model_copy(update={"dir": tmp_path})
    store = trained.store.model_copy(update={"path": trained.store_path})
    config = trained.model_copy(update={"train": train, "run": run, "store": store})
    for _ in head_stages(config, progress=False):
        pass
    task = evaluation_task(config)
    # Another place of the samples makes a training run of its own, with the same bits.
    np.testing.assert_array_equal(full(task, data="memory"), full(task, head=task.head))
    for variant in (centroids_only, full_classic):
        assert variant(task).shape == (18, 3)


def test_methods_are_chosen_by_name() -> None:
    assert chosen_methods([]) == [HEAD]
    assert chosen_methods(["nearest_centroid", "mean_pool"]) == ["mean_pool", "nearest_centroid", HEAD]
    assert "full_classic" not in chosen_methods(["all"])
    assert {"centroids_only", "weights_only", "full", "full_classic"} <= set(
        chosen_methods([], ablation=True)
    )
    with pytest.raises(ConfigError, match="mean_pol"):
        chosen_methods(["mean_pol"])


def test_a_named_method_that_cannot_be_applied_is_an_error(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join([*task.split.class_names, "more"]), encoding="utf-8")
    with pytest.raises(NotApplicable):
        evaluate(_with(task, encoder_classes=path), ["encoder_views"])


def test_files_read_back_to_the_same_numbers(evaluation: Evaluation, tmp_path: Path) -> None:
    paths = write_evaluation(evaluation, tmp_path, {"fingerprints": {"head_fp": "x"}})
    assert [path.name for path in paths] == ["results.json", "results.md", "results.csv", PREDICTIONS_FILE]
    again = results(read_evaluation(tmp_path))
    written = json.loads((tmp_path / "results.json").read_text())
    for name, numbers in written["methods"].items():
        again["methods"][name]["seconds"] = numbers["seconds"]
    assert json.loads(json.dumps(again)) == {k: v for k, v in written.items() if k != "fingerprints"}
    rows = list(csv.reader((tmp_path / "results.csv").open(encoding="utf-8")))
    assert len(rows) == 1 + len(evaluation.summaries)
    assert len({len(row) for row in rows}) == 1


def test_predictions_of_videos_without_a_tse_read_back(task: Task, tmp_path: Path) -> None:
    split = task.split
    lost = type(split)(
        split.name,
        split.class_names,
        (*split.ids, "lost", "strange"),
        np.append(split.targets, [0, -1]),
        np.append(split.lengths, [0, 0]),
    )
    found = evaluate(Task(**{**vars(task), "split": lost}), [HEAD])
    assert (found.summaries[HEAD].n_scored, found.summaries[HEAD].n_denominator) == (18, 20)
    write_evaluation(found, tmp_path, {})
    assert read_evaluation(tmp_path).summaries == found.summaries
    assert "2 of them without a TSE" in markdown(found)


def test_a_damaged_evaluation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no readable evaluation"):
        read_evaluation(tmp_path)
    (tmp_path / PREDICTIONS_FILE).write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match="no readable evaluation"):
        read_evaluation(tmp_path)


def test_the_stage_compares_every_pair(trained: Config) -> None:
    data = evaluate_stage(trained).data
    assert {(c["first"], c["second"]) for c in data["comparisons"]} == {
        ("nearest_centroid", "mean_pool"),
        (HEAD, "mean_pool"),
        (HEAD, "nearest_centroid"),
    }
