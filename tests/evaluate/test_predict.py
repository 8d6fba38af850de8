"""Labels for new videos: the same as for the stored ones, and no label where there is no video."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from command import Command

from dejavid.config import Config, load_config
from dejavid.errors import ConfigError, ManifestError, StoreVersionError
from dejavid.evaluate.export import FixedLengthHead, export_head
from dejavid.evaluate.predict import VideoFrames, find_videos, frames_of_manifest, predict
from dejavid.evaluate.predictions import NearestClass, Prediction, predict_stored, to_text
from dejavid.pipeline import evaluate_stage, extract_stage, head_stages
from dejavid.store import open_store
from dejavid.train import DejaVidHead


def write_video(path: Path, rising: bool, seed: int, n_frames: int = 30) -> None:
    """A bright bar that moves up or down over noise."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(60, 120, (48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(n_frames):
            image = ground.copy()
            place = int((k if rising else n_frames - 1 - k) / (n_frames - 1) * 36)
            image[36 - place : 48 - place] = (250, 240, 20)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A head trained on twelve real video files with a toy encoder."""
    folder = tmp_path_factory.mktemp("videos")
    with (folder / "videos.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("video_id", "path", "label", "split"))
        for split, count in (("train", 4), ("val", 2)):
            for label in ("up", "down"):
                for number in range(count):
                    name = f"{split}-{label}-{number}"
                    write_video(folder / f"{name}.mp4", label == "up", number + 10 * (split == "val"))
                    writer.writerow((name, f"{name}.mp4", label, split))
    settings = {
        "run.dir": folder / "run",
        "manifest.path": folder / "videos.csv",
        "extract.encoder": "toy:0",
        "extract.clip_len": 4,
        "extract.hop": 4,
        "extract.workers": 0,
        "centroids.length": 4,
        "train.epochs": 6,
        "train.batch_size": 4,
        "train.lr": 0.1,
    }
    config = load_config(None, [f"{key}={value}" for key, value in settings.items()])
    extract_stage(config, progress=False)
    for _ in head_stages(config, progress=False):
        pass
    evaluate_stage(config)
    return config


def _folder(run: Config) -> Path:
    return run.manifest.path.parent


def test_videos_get_the_labels_of_their_stored_tses(run: Config) -> None:
    store = open_store(run.store_path)
    head = DejaVidHead.load(run.head_path)
    names = [i for i in store.ids() if i.startswith("val")]
    stored = {p.video_id: p for p in predict_stored(head, store, names)}
    done = predict(run.head_path, [str(_folder(run) / "val-*.mp4")])
    assert (len(done.predictions), done.n_failed) == (4, 0)
    for prediction in done.predictions:
        name = Path(prediction.video_id).stem
        assert [c for c, _ in prediction.top] == [c for c, _ in stored[name].top]
        np.testing.assert_allclose(
            [p for _, p in prediction.top], [p for _, p in stored[name].top], rtol=1e-5
        )
        assert prediction.n_steps == stored[name].n_steps
        assert prediction.top[0][0] == name.split("-")[1]
    assert "windows/s" in done.summary


def test_a_store_is_labelled_without_videos(run: Config) -> None:
    done = predict(run.head_path, [str(run.store_path)], top=1)
    assert [p.video_id for p in done.predictions] == open_store(run.store_path).ids()
    assert done.encode_s == 0
    assert {len(p.top) for p in done.predictions} == {1}


def test_a_broken_video_fails_alone(run: Config, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    good = str(_folder(run) / "val-up-0.mp4")
    done = predict(run.head_path, [str(tmp_path / "broken.mp4"), good])
    assert [p.failure is None for p in done.predictions] == [False, True]
    assert done.predictions[0].failure.startswith("decode: ")
    assert "1 failed" in done.summary


def test_videos_are_found_in_folders_and_by_pattern(run: Config, tmp_path: Path) -> None:
    folder = _folder(run)
    assert len(find_videos([str(folder)])) == 12
    assert len(find_videos([str(folder / "*up*.mp4"), str(folder / "val-up-0.mp4")])) == 6
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "img_1.jpg").write_bytes(b"")
    assert find_videos([str(frames)]) == [frames]
    for nothing in (str(tmp_path / "none.mp4"), str(tmp_path / "*.avi")):
        with pytest.raises(ManifestError):
            find_videos([nothing])


def test_an_encoder_that_is_another_one_is_refused(run: Config) -> None:
    video = str(_folder(run) / "val-up-0.mp4")
    with pytest.raises(StoreVersionError, match="encoder"):
        predict(run.head_path, [video], overrides=["extract.encoder=toy:1"])
    with pytest.raises(StoreVersionError, match="hop"):
        predict(run.head_path, [video], overrides=["extract.hop=8"])
    with pytest.raises(ConfigError, match=r"train\.lr"):
        predict(run.head_path, [video], overrides=["train.lr=1"])
    assert predict(run.head_path, [video], overrides=["extract.batch_size=2"]).n_failed == 0


def test_a_head_that_knows_no_encoder_is_refused(run: Config, trained: Config, tmp_path: Path) -> None:
    video = str(_folder(run) / "val-up-0.mp4")
    imported = tmp_path / "imported"
    export_head(run.head_path, imported)
    recipe = json.loads((imported / "extract.json").read_text())
    del recipe["facts"]["windowing"]
    (imported / "extract.json").write_text(json.dumps(recipe))
    with pytest.raises(ConfigError, match="imported features"):
        predict(imported, [video])
    (imported / "extract.json").unlink()
    with pytest.raises(ConfigError, match="does not say how"):
        predict(imported, [video])
    with pytest.raises(StoreVersionError):
        predict(run.head_path, [str(trained.store_path)])


@pytest.mark.parametrize("step_pattern", ["no_diagonal", "classic"])
@pytest.mark.parametrize(("noise", "seed"), [(0.01, 0), (0.01, 1), (1.0, 2)])
def test_early_abandoning_is_exact(step_pattern: str, noise: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (60, 4, 24)
    centroids = torch.randn(60, 1, 24, generator=generator) + 0.02 * torch.randn(shape, generator=generator)
    centroids[31] = centroids[7]  # equal distances: the lower class
    head = DejaVidHead(centroids, 0.7 * torch.randn(shape, generator=generator), step_pattern=step_pattern)
    head.log_weights.data[31] = head.log_weights.data[7]
    head.eval()
    lengths = torch.randint(4, 12, (50,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    nearest = torch.randint(0, 60, (50,), generator=generator)
    values = torch.cat(
        [
            centroids[c, torch.linspace(0, 3, int(n)).long()]
            + noise * torch.randn(int(n), 24, generator=generator)
            for c, n in zip(nearest.tolist(), lengths, strict=True)
        ]
    )
    expected = head.distances(values, offsets).argmin(1)
    search = NearestClass(head)
    for _ in range(2):  # the second time by what it learned in the first
        torch.testing.assert_close(search(values, offsets), expected)
    assert search.pays == (noise < 0.1)


def test_early_abandoning_gives_the_best_class_without_a_probability(run: Config) -> None:
    whole, quick = (
        predict(run.head_path, [str(run.store_path)], early_abandon=early) for early in (False, True)
    )
    assert [p.top[0][0] for p in quick.predictions] == [p.top[0][0] for p in whole.predictions]
    assert {p.top[0][1] for p in quick.predictions} == {None}


def test_text_formats() -> None:
    found = [Prediction("a,b", (("up", 0.75), ("down", 0.25)), 9), Prediction("c", (), 0, "decode: damaged")]
    lines = [json.loads(line) for line in to_text(found, "jsonl").splitlines()]
    assert lines[0]["top"] == [{"class": "up", "probability": 0.75}, {"class": "down", "probability": 0.25}]
    assert lines[1]["failure"] == "decode: damaged"
    rows = list(csv.DictReader(io.StringIO(to_text(found, "csv"))))
    assert [(r["video_id"], r["rank"], r["class"], r["failure"]) for r in rows] == [
        ("a,b", "1", "up", ""),
        ("a,b", "2", "down", ""),
        ("c", "", "", "decode: damaged"),
    ]
    table = to_text(found, "table").splitlines()
    assert table == ["a,b  up 75.0 %  down 25.0 %", "c    failed: decode: damaged"]
    with pytest.raises(ConfigError, match="'xml'"):
        to_text(found, "xml")


def test_frames_of_a_video(run: Config) -> None:
    from PIL import Image

    frames = frames_of_manifest(run)
    pictures = frames("val-up-0", [0.0, 1.19, 0.6, 99.0])
    assert len(pictures) == 4
    bright = []
    for picture in pictures:
        image = np.asarray(Image.open(io.BytesIO(picture)).convert("L"), np.float64)
        bright.append(float((image.mean(1) * np.arange(len(image))).sum() / image.mean(1).sum()) / len(image))
    assert bright[0] > bright[2] > bright[1]  # the bar rises
    assert pictures[3] == pictures[1]  # the last frame
    with pytest.raises(ConfigError, match="not known"):
        frames("nobody", [0.0])
    with pytest.raises(OSError, match="no such file"):
        VideoFrames({"x": (Path("/none.mp4"), None, None)})("x", [0.0])


def test_export(run: Config, tmp_path: Path) -> None:
    import yaml

    done = export_head(run.head_path, tmp_path / "out", n_steps=7)
    assert done.program == "for 7 steps"
    assert {path.name for path in done.paths} == {
        "head.safetensors",
        "head.json",
        "extract.json",
        "head.pt2",
        "README.md",
    }
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert front["pipeline_tag"] == "video-classification"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 1.0
    head = DejaVidHead.load(tmp_path / "out")
    tses = torch.randn(3, 7, head.inputs.n_features_in, generator=torch.Generator().manual_seed(0))
    expected = head(tses.flatten(0, 1), 7 * torch.arange(4))
    program = torch.export.load(tmp_path / "out" / "head.pt2").module()
    torch.testing.assert_close(program(tses), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="exists"):
        export_head(run.head_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="0 steps"):
        export_head(run.head_path, tmp_path / "other", n_steps=0)


@pytest.mark.parametrize("step_pattern", ["no_diagonal", "classic"])
@pytest.mark.parametrize("n_steps", [1, 5])
def test_fixed_length_head_is_the_head(step_pattern: str, n_steps: int) -> None:
    from dejavid.train.inputs import InputLayer

    generator = torch.Generator().manual_seed(0)
    mean, scale = torch.randn(6, generator=generator), torch.rand(6, generator=generator) + 0.5
    inputs = InputLayer(8, columns=(1, 7), mean=mean, scale=scale, position=2.0)
    centroids = torch.randn(3, 4, 7, generator=generator)
    head = DejaVidHead(
        centroids, 0.1 * centroids, step_pattern=step_pattern, inputs=inputs, logits="per_step"
    )
    tses = torch.randn(5, n_steps, 8, generator=generator)
    expected = head.eval()(tses.flatten(0, 1), n_steps * torch.arange(6))
    torch.testing.assert_close(FixedLengthHead(head, n_steps)(tses), expected, rtol=1e-4, atol=1e-4)


def test_the_commands(run: Config, command: Command, tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    good = _folder(run) / "val-up-0.mp4"
    code, out, _ = command(
        "predict", run.head_path, good, broken, "-q", "--format", "jsonl", "--explain", page
    )
    assert code == 4  # one video failed, and the other is labelled all the same
    assert [json.loads(line)["failure"] is None for line in out.splitlines()] == [True, False]
    assert "data:image\\u002fjpeg" in page.read_text()
    assert command("predict", run.head_path, good, "--format", "xml")[0] == 3
    assert command("predict", tmp_path, good, "-q")[0] == 3
    assert command("predict", run.head_path, tmp_path / "none.mp4", "-q")[0] == 3
    code, out, _ = command("export", run.head_path, tmp_path / "exported")
    assert code == 0
    assert str(tmp_path / "exported" / "README.md") in out
