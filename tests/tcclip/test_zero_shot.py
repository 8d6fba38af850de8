"""Videos against class names: sampling, views, protocols, and every wrong input found before any decoding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numbered_videos import write_video

from dejavid.config import ExtractSection
from dejavid.errors import ConfigError, ManifestError
from dejavid.evaluate.zero_shot import TestSet, Views, average, table, write_zero_shot, zero_shot
from dejavid.extract import load_encoder
from dejavid.extract.decode import open_video
from dejavid.extract.encoders.tcclip.convert import convert
from dejavid.extract.encoders.tcclip.sampling import random_frames, spread_frames
from dejavid.extract.preprocess import crop_offsets, resize, resized_size

SECTION = ExtractSection(device="cpu", workers=0, batch_size=3)
N_FRAMES = (9, 4, 3, 20)  # of the videos; the model takes 4


@pytest.fixture(scope="session")
def videos(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four videos, label files and manifests."""
    folder = tmp_path_factory.mktemp("zero_shot")
    names = config["class_names"]
    rows = ["video_id,path,label,split"]
    for number, n_frames in enumerate(N_FRAMES):
        write_video(folder / f"v{number}.mp4", n_frames, size=(96, 80))
        rows.append(f'v{number},v{number}.mp4,"{names[number]}",{"test" if number < 3 else "other"}')
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    lines = ["id,name", *(f'{i},"{name}"' for i, name in enumerate(names))]
    (folder / "classes.csv").write_text("\n".join(lines) + "\n")
    (folder / "llm.json").write_text(
        json.dumps({str(i): f"{n}: a photo of a {n}" for i, n in enumerate(names)})
    )
    return folder


@pytest.fixture(scope="session")
def model(folder: Callable[[str], Path]) -> str:
    return f"tcclip:{folder('a')}"


@pytest.fixture(scope="session")
def test_set(videos: Path) -> TestSet:
    return TestSet(videos / "manifest.csv", "test", videos / "classes.csv")


def test_sampled_frames_are_the_official_ones(config: dict[str, Any]) -> None:
    for row in config["sampling"]:
        n = row["total_frames"]
        assert spread_frames(n, 16).tolist() == [row["test_1view"]]
        assert random_frames(n, 16, np.random.RandomState(0)).tolist() == row["train"]
        random = np.random.RandomState(0)
        views = [frame for _ in range(2) for frame in random_frames(n, 16, random).tolist()]
        assert views == row["test_2views"]


def test_clips_at_equal_distances() -> None:
    assert spread_frames(32, 4, 2).tolist() == [[2, 10, 18, 26], [6, 14, 22, 30]]
    assert spread_frames(2, 4).tolist() == [[0, 0, 1, 1]]  # a video shorter than a clip repeats frames
    for n in (1, 3, 16, 300):
        clips = spread_frames(n, 16, 4)
        assert clips.min() >= 0
        assert clips.max() < n
        assert (np.diff(clips, axis=1) >= 0).all()


@pytest.mark.parametrize(
    "views",
    [Views(1), Views(3, "three"), Views(2, seed=5)],
    ids=["one", "4 x 3 style", "seeded"],
)
def test_probabilities_of_the_views_are_averaged(
    views: Views, model: str, test_set: TestSet, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the protocol written down once more, one view at a time."""
    found: dict[str, Any] = {}

    def record(split: Any, rows: Any, scores: Any, **keywords: Any) -> Any:
        found["scores"] = scores
        return outcomes_of(split, rows, scores, **keywords)

    from dejavid.evaluate import zero_shot as module

    outcomes_of = module.outcomes_of
    monkeypatch.setattr(module, "outcomes_of", record)
    zero_shot([model], [test_set], views=views, section=SECTION)
    encoder = load_encoder(f"{model}?labels={test_set.labels}", device="cpu")
    spec = encoder.spec
    short = 64 if views.crops == "three" else spec.short_side
    for number in range(3):
        n = N_FRAMES[number]
        with open_video(videos / f"v{number}.mp4") as video:
            images = [frame.image for frame in video.stream(np.arange(n))]
        if views.seed is None:
            clips = spread_frames(n, 4, views.n_clips)
        else:
            random = np.random.RandomState((views.seed, n))
            clips = np.stack([random_frames(n, 4, random) for _ in range(views.n_clips)])
        from dataclasses import replace

        size = resized_size(80, 96, replace(spec, short_side=short), views.crops)
        probabilities = []
        for clip in clips:
            for y, x in crop_offsets(*size, spec, views.crops):
                pixels = np.stack([resize(images[i], *size, spec)[y : y + 64, x : x + 64] for i in clip])
                logits = encoder.encode(torch.from_numpy(pixels)[None]).logits
                assert logits is not None
                probabilities.append(logits.softmax(-1)[0].numpy())
        assert len(probabilities) == views.n_clips * (3 if views.crops == "three" else 1)
        np.testing.assert_allclose(np.exp(found["scores"][number]), np.mean(probabilities, 0), atol=2e-4)


def test_a_seed_gives_one_result_and_another_seed_another(model: str, test_set: TestSet) -> None:
    def confidences(seed: int | None) -> float | None:
        result = zero_shot([model], [test_set], views=Views(2, seed=seed), section=SECTION)
        return result.base[0].summary.nll

    assert confidences(1) == confidences(1)
    assert len({confidences(seed) for seed in (1, 2, None)}) == 3


def test_batches_and_processes_do_not_matter(model: str, test_set: TestSet) -> None:
    one = zero_shot([model], [test_set], section=SECTION).base[0].summary
    for section in (SECTION.model_copy(update={"batch_size": 1}), SECTION.model_copy(update={"workers": 1})):
        other = zero_shot([model], [test_set], section=section).base[0].summary
        assert (other.n_correct, other.n_denominator) == (one.n_correct, one.n_denominator)
        assert other.nll == pytest.approx(one.nll, abs=1e-4)


def test_base_to_novel(model: str, base: str, test_set: TestSet, videos: Path, tmp_path: Path) -> None:
    convert(None, base, tmp_path / "clip", changes={"method": "clip", "n_frames": 4})
    models = [model, f"tcclip:{tmp_path / 'clip'}"]
    # With the prompts of a language model, labels are given by id.
    rows = ["video_id,path,label,split", f"v3,{videos.name}/v3.mp4,3,novel"]
    (tmp_path / "novel.csv").write_text("\n".join(rows) + "\n")
    novel = TestSet(tmp_path / "novel.csv", "novel", videos / "classes.csv", root=videos.parent)
    result = zero_shot(models, [test_set], [novel], views=Views(1), section=SECTION)
    assert [(r.model, r.summary.n_denominator) for r in result.base] == [(m, 3) for m in models]
    assert [r.summary.n_denominator for r in result.novel] == [1, 1]
    first, second = (r.summary.top1 for r in result.base)
    assert result.base_average.top1 == pytest.approx((first + second) / 2)
    assert result.base_average.top1_std == pytest.approx(abs(first - second) / 2)  # of the population
    a, b = result.base_average.top1, average(result.novel).top1
    assert result.harmonic_mean == pytest.approx(2 * a * b / (a + b) if a + b else 0)
    names = [row[0] for row in table(result)]
    assert names[1:] == ["manifest:test"] * 2 + ["mean of base"] + ["novel:novel"] * 2 + [
        "mean of novel",
        "harmonic mean",
    ]
    write_zero_shot(result, tmp_path / "out" / "zero_shot.json")
    written = json.loads((tmp_path / "out" / "zero_shot.json").read_text())
    assert written["harmonic_mean"] == result.harmonic_mean
    assert written["base"][1]["summary"]["n_denominator"] == 3
    assert written["views"]["n_clips"] == 1


def test_a_broken_video_counts_and_is_named(
    model: str, videos: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    names = config["class_names"]
    (tmp_path / "v1.mp4").write_bytes((videos / "v1.mp4").read_bytes()[:200])
    (tmp_path / "v2.mp4").write_bytes((videos / "v2.mp4").read_bytes())
    rows = ["video_id,path,label,split", f"v1,v1.mp4,{names[1]},t", f'v2,v2.mp4,"{names[2]}",t']
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    test = TestSet(tmp_path / "m.csv", "t", videos / "classes.csv")
    wrong = zero_shot([model], [test], section=SECTION).base[0]
    left_out = zero_shot([model], [test], section=SECTION, missing="skip").base[0]
    assert (wrong.summary.n_denominator, left_out.summary.n_denominator) == (2, 1)
    assert wrong.summary.n_scored == 1
    assert list(wrong.failures) == ["v1"]
    assert table(zero_shot([model], [test], section=SECTION))[1][-1] == "1"


def test_names_that_a_language_model_wrote_need_a_longer_context(
    model: str, videos: Path, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = ["video_id,path,label,split", "v0,v0.mp4,0,t"]
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    test = TestSet(tmp_path / "m.csv", "t", videos / "llm.json", root=videos)
    with pytest.raises(ConfigError, match="more than the 30"):
        zero_shot([model], [test], section=SECTION)
    result = zero_shot([f"tcclip:{folder('b')}"], [test], section=SECTION)
    assert result.base[0].summary.n_scored == 1


@pytest.mark.parametrize(
    ("rows", "split", "words"),
    [
        (["v0,v0.mp4,swimming,t"], "t", "'swimming'"),
        (["v0,v0.mp4,zumba,t", "v1,v1.mp4,0,t"], "t", "1 labels"),  # a name and an id
        (["v0,v0.mp4,zumba,t"], "val", "no video is in split 'val'"),
        (["v0,absent.mp4,zumba,t"], "t", "absent.mp4"),
    ],
)
def test_manifests_that_are_refused(
    rows: list[str], split: str, words: str, model: str, videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.csv").write_text("\n".join(["video_id,path,label,split", *rows]) + "\n")
    test = TestSet(tmp_path / "m.csv", split, videos / "classes.csv", root=videos)
    with pytest.raises(ManifestError, match=words):
        zero_shot([model], [test], section=SECTION)


def test_encoders_and_arguments_that_are_refused(model: str, test_set: TestSet) -> None:
    with pytest.raises(ConfigError, match="takes no names"):
        zero_shot(["toy:0"], [test_set], section=SECTION)
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        zero_shot([], [test_set], section=SECTION)
    with pytest.raises(ConfigError, match="no views"):
        Views(0)
