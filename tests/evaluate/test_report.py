"""The report, opened in a real browser: nothing fails, everything is drawn, nothing overflows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from html import escape
from pathlib import Path

import numpy as np
import pytest

from dejavid.config import Config
from dejavid.errors import ConfigError, VideoDecodeError
from dejavid.evaluate.baselines import HEAD
from dejavid.evaluate.evaluation import Evaluation, assess, read_evaluation
from dejavid.evaluate.metrics import Split, outcomes_of
from dejavid.evaluate.report import choose_videos, illustrate, render_report
from dejavid.evaluate.task import Task
from dejavid.pipeline import evaluate_stage, evaluation_task, report_stage

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in (apt: chromium)")

# Loads the page in a frame of the width asked for and keeps writing into its own document what it sees there.
# Figures are asked for as for printing: a browser without a screen need not notice what would be on it.
PROBE = """<!doctype html><body style="margin:0"><iframe id="page" src="{url}"
style="width:{width}px;height:30000px;border:0"></iframe><pre id="seen"></pre><script>
function look() {{
  const page = document.getElementById("page").contentDocument;
  const places = [...page.querySelectorAll("[data-figure]")];
  document.getElementById("seen").textContent = JSON.stringify({{
    figures: places.length,
    drawn: places.filter((p) => p.querySelector("svg.main-svg .subplot")).length,
    widest: page.documentElement.scrollWidth,
    images: [...page.images].filter((i) => i.naturalWidth === 0).length,
    outside: [...page.querySelectorAll("[src],link[href]")].filter(
      (e) => !/^data:/.test(e.getAttribute("src") || e.getAttribute("href"))).length,
    markup: page.querySelectorAll("h3 b, td b, p b").length,
  }});
  setTimeout(look, 200);
}}
addEventListener("load", () => {{
  document.getElementById("page").contentWindow.dispatchEvent(new Event("beforeprint"));
  look();
}});</script></body>"""
VIRTUAL_MS = 10_000  # of the page's own clock, which runs ahead while nothing happens


def browse(page: Path, width: int) -> tuple[dict[str, int], list[str]]:
    """What the probe saw, and every line the page wrote to the console."""
    probe = page.with_name(f"probe-{width}.html")
    probe.write_text(PROBE.format(url=page.name, width=width), encoding="utf-8")
    assert CHROMIUM is not None
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
        " --disable-dev-shm-usage --disable-background-networking --disable-component-update"
        " --allow-file-access-from-files"
        f" --enable-logging=stderr --dump-dom --virtual-time-budget={VIRTUAL_MS} --window-size=1400,30000"
    )
    profile = page.with_name(f"profile-{width}")
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert seen is not None, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(seen.group(1)), console


def red_frames(video_id: str, times_s: object) -> list[bytes]:
    """Frames without a video."""
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(sink, "JPEG")
    return [sink.getvalue()] * len(list(times_s))  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def task(trained: Config) -> Task:
    evaluate_stage(trained)
    return evaluation_task(trained)


@pytest.fixture(scope="module")
def page(trained: Config, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    evaluation = read_evaluation(trained.run.dir)
    names = task.head.class_names
    training = {
        n: [i for i, t in zip(task.train_ids, task.train_targets, strict=True) if names[t] == n]
        for n in names
    }
    items = illustrate(
        task.head, task.store, choose_videos(evaluation, 3), training=training, frames=red_frames
    )
    assert len(items) == 3
    assert all(item.frames and item.moments for item in items)
    history = [{"epoch": e, "train_loss": 1 / (e + 1), "train_accuracy": 0.5, "lr": 0.1} for e in range(5)]
    path = tmp_path_factory.mktemp("report") / "report.html"
    html = render_report(
        evaluation, history=history, explained=items, about=["about <script>alert(1)</script>"]
    )
    path.write_text(html, encoding="utf-8")
    return path


def test_names_are_escaped_everywhere(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    own = html[: html.index("<script>/*")] if "<script>/*" in html else html
    assert escape("up & <b>down</b>") in own
    assert "<b>down" not in own
    assert "<script>alert" not in html


def test_the_page_needs_no_network(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?!data:|#)', html)


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(page: Path, width: int) -> None:
    seen, console = browse(page, width)
    assert console == []
    assert seen["figures"] == seen["drawn"] >= 12
    assert seen["widest"] <= width
    assert (seen["images"], seen["outside"], seen["markup"]) == (0, 0, 0)


def _large(n: int = 20_000, c: int = 400) -> Evaluation:
    """Methods that are right on 70 % and 80 % of the videos."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, c, n)
    split = Split(
        "val",
        tuple(f"class number {i}" for i in range(c)),
        tuple(f"video-{i:05d}" for i in range(n)),
        targets,
        rng.integers(5, 34, n),
    )
    outcomes = {}
    for name, edge in (("mean_pool", 3.0), (HEAD, 4.0)):
        scores = rng.normal(size=(n, c)).astype(np.float32)
        scores[np.arange(n), targets] += edge
        outcomes[name] = outcomes_of(split, np.arange(n), scores, probabilities=True)
    return assess(split, outcomes, "wrong")


@pytest.mark.slow
@needs_browser
def test_400_classes_and_20000_videos(tmp_path: Path) -> None:
    began = time.process_time()
    evaluation = _large()
    html = render_report(evaluation).encode()
    # Processor time, which a busy machine does not stretch.
    assert time.process_time() - began < 60
    assert len(html) < 15e6
    path = tmp_path / "report.html"
    path.write_bytes(html)
    for width in (1280, 390):
        seen, console = browse(path, width)
        assert console == []
        assert seen["figures"] == seen["drawn"] >= 5
        assert seen["widest"] <= width


def test_videos_to_explain_are_wrong_or_narrow() -> None:
    split = Split("val", ("a", "b"), tuple("uvwxyz"), np.array([0, 0, 0, 0, 1, 1]), np.ones(6, np.int64))
    scores = np.log([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.1, 0.9], [0.2, 0.8], [0.45, 0.55]])
    outcomes = outcomes_of(split, np.arange(6), scores, probabilities=True)
    evaluation = assess(split, {HEAD: outcomes}, "wrong")
    assert choose_videos(evaluation, 4) == ["x", "w", "z", "v"]
    assert len(choose_videos(evaluation, 6)) == 6


def test_without_frames_the_page_says_why(task: Task, trained: Config) -> None:
    def broken(video_id: str, times_s: object) -> list[bytes]:
        raise VideoDecodeError("damaged at byte 9", where=video_id, fix="none")

    evaluation = read_evaluation(trained.run.dir)
    for frames, why in ((broken, "damaged at byte 9"), (None, "not at hand")):
        items = illustrate(task.head, task.store, task.ids[:1], training={}, frames=frames)
        assert not items[0].frames
        assert why in render_report(evaluation, explained=items)


def test_a_video_that_is_not_there_is_named(task: Task) -> None:
    with pytest.raises(ConfigError, match="'nobody'"):
        illustrate(task.head, task.store, ["nobody"], training={}, frames=None)


def test_the_stage_writes_the_page_without_the_videos(task: Task, trained: Config) -> None:
    report = report_stage(trained, videos=task.ids[:1], progress=False)
    assert report.data["videos"] == task.ids[:1]
    html = report.paths[0].read_text(encoding="utf-8")
    assert "No pictures: there is no such file" in html
