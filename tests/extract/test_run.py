"""One shard from manifest to store: the same bits whatever the workers, resumed, stopped, killed, broken."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numbered_videos import cut_file, write_audio, write_video

from dejavid.config import Config, load_config
from dejavid.errors import (
    ConfigError,
    ManifestError,
    OutOfMemory,
    PartialResultError,
    Preempted,
    StoreError,
    StoreVersionError,
)
from dejavid.extract import Row, extract_videos, load_encoder, pool, write_manifest
from dejavid.extract.decode import open_video
from dejavid.extract.encoders import Encoded, TorchEncoder
from dejavid.extract.windows import plan_windows
from dejavid.store import Store, open_store

N = 12


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos of 5 to 49 frames, short ones shorter than a window."""
    root = tmp_path_factory.mktemp("run")
    rows = []
    for k in range(N):
        path = write_video(root / f"{k}.mp4", 5 + 4 * k, size=(64, 48))
        rows.append(Row(f"v{k}", path.name, f"c{k % 3}", "train" if k % 2 else "val"))
    write_manifest(root / "m.csv", rows)
    return root / "m.csv"


def _config(manifest: Path, out: Path, *overrides: str) -> Config:
    return load_config(
        None,
        [
            f"manifest.path={manifest}",
            f"run.dir={out}",
            "extract.encoder=toy:0",
            "extract.workers=0",
            "extract.clip_len=4",
            "extract.frame_interval=2",
            "extract.hop=8",
            "extract.batch_size=5",
            "store.dtype=float32",
            *overrides,
        ],
    )


def _content(store: Store) -> dict[str, tuple[bytes, bytes, bytes, int, str]]:
    rows = {}
    for video_id in store.ids():
        tse = store.get(video_id)
        times = (np.asarray(tse.start_s).tobytes(), np.asarray(tse.end_s).tobytes())
        rows[video_id] = (tse.values.tobytes(), *times, tse.n_frames, tse.status)
    return rows


def _extract(config: Config, **options: object) -> dict[str, tuple[bytes, bytes, bytes, int, str]]:
    extract_videos(config, progress=False, **options)
    return _content(open_store(config.store_path))


@pytest.fixture(scope="module")
def expected(
    manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[bytes, bytes, bytes, int, str]]:
    return _extract(_config(manifest, tmp_path_factory.mktemp("expected")))


def test_a_tse_is_what_plain_loops_give(manifest: Path, tmp_path: Path) -> None:
    config = _config(manifest, tmp_path)
    extract_videos(config, progress=False)
    store = open_store(config.store_path)
    encoder = load_encoder("toy:0")
    for k in (0, 3, 11):
        with open_video(manifest.parent / f"{k}.mp4") as video:
            frames = list(video.stream(np.arange(1000)))
        windows = plan_windows(len(frames), clip_len=4, frame_interval=2, hop=8)[:, 0]
        tse = store.get(f"v{k}")
        assert tse.n_frames == len(frames) == 5 + 4 * k
        assert len(tse.values) == len(windows)
        for step, window in enumerate(windows):
            clip = torch.stack([torch.from_numpy(frames[i].image) for i in window]).permute(0, 3, 1, 2)
            # 48 x 64 -> 32 x 42, of which the middle 32 columns
            small = F.interpolate(clip, size=(32, 42), mode="bilinear")[..., 5:37].permute(0, 2, 3, 1)
            features = encoder.encode(small[None].contiguous()).features[0]
            np.testing.assert_allclose(tse.values[step], features.numpy(), atol=1e-6)
            assert tse.start_s[step] == pytest.approx(window[0] / 25)
            assert tse.end_s[step] == pytest.approx((window[-1] + 1) / 25)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_bit(
    manifest: Path, tmp_path: Path, expected: object, workers: int
) -> None:
    assert _extract(_config(manifest, tmp_path, f"extract.workers={workers}")) == expected


def test_nor_does_it_with_a_real_encoder(manifest: Path, tmp_path: Path) -> None:
    """Batches of frames of several videos: their composition must not depend on who decoded them when."""
    overrides = ["extract.encoder='demo:efficientnet-lite0?size=96'", "extract.batch_size=8"]
    alone, three = (
        _extract(_config(manifest, tmp_path / f"{workers}", *overrides, f"extract.workers={workers}"))
        for workers in (0, 3)
    )
    assert alone == three


@pytest.mark.parametrize("crops", ["center", "three"])
@pytest.mark.parametrize("merge", ["mean", "concat"])
def test_an_image_encoder_pools_frames_that_windows_share(
    manifest: Path, tmp_path: Path, crops: str, merge: str
) -> None:
    """Overlapping windows of an image encoder: the mean over each window's frames, one encoding per frame."""
    config = _config(
        manifest,
        tmp_path,
        "extract.encoder='toy:0?frames=1'",
        "extract.hop=3",
        "extract.max_steps=4",
        f"extract.crops={crops}",
        f"extract.merge_views={merge}",
        "extract.rows=embedding+logits",
    )
    extract_videos(config, progress=False)
    single = _config(
        manifest,
        tmp_path / "single",
        "extract.encoder='toy:0?frames=1'",
        "extract.clip_len=1",
        "extract.frame_interval=1",
        "extract.hop=1",
        f"extract.crops={crops}",
        f"extract.merge_views={merge}",
        "extract.rows=embedding+logits",
    )
    extract_videos(single, progress=False)
    pooled, frames = open_store(config.store_path), open_store(single.store_path)
    assert pooled.feature_dim == (16 + 5) * (3 if (crops, merge) == ("three", "concat") else 1)
    for video_id in pooled.ids():
        each = frames.get(video_id).values
        plan = plan_windows(len(each), clip_len=4, frame_interval=2, hop=3, max_steps=4)[:, 0]
        expected = np.stack([each[window].mean(axis=0) for window in plan])
        np.testing.assert_allclose(pooled.get(video_id).values, expected, atol=1e-5)


def test_official_views_lie_beside_the_tse(manifest: Path, tmp_path: Path) -> None:
    config = _config(
        manifest,
        tmp_path,
        "extract.encoder='toy:0?frames=16&classes=7'",
        "extract.clip_len=16",
        "extract.frame_interval=1",
        "extract.official_views=dense",
    )
    extract_videos(config, progress=False)
    store = open_store(config.store_path)
    for video_id in store.ids():
        views = np.asarray(store.get(video_id).extras["official_probabilities"])
        assert views.shape == (15, 7)
        np.testing.assert_allclose(views.sum(axis=1), 1, atol=1e-5)
    # Where the five windows coincide (too short a video), so do their probabilities.
    short = np.asarray(store.get("v0").extras["official_probabilities"]).reshape(5, 3, 7)
    assert (short == short[:1]).all()
    long = np.asarray(store.get("v11").extras["official_probabilities"]).reshape(5, 3, 7)
    assert not np.allclose(long[0], long[4])


def test_spans_and_seconds(manifest: Path, tmp_path: Path) -> None:
    config = _config(
        manifest,
        tmp_path,
        "extract.spans=[4, 8]",
        "extract.hop=0.2",
        "extract.unit=seconds",
        "extract.merge_views=concat",
        "extract.rows=embedding+probabilities",
    )
    extract_videos(config, progress=False)
    tse = open_store(config.store_path).get("v11")
    assert tse.values.shape == (-(-49 // 5), 2 * (16 + 5))
    np.testing.assert_allclose(tse.values[:, 16:21].sum(axis=1), 1, atol=1e-5)


def test_a_second_run_does_nothing(manifest: Path, tmp_path: Path, expected: object) -> None:
    config = _config(manifest, tmp_path)
    first = extract_videos(config, progress=False)
    again = extract_videos(config, progress=False)
    assert (first.n_done, first.n_skipped) == (N, 0)
    assert (again.n_done, again.n_skipped, again.n_windows) == (0, N, 0)
    assert _content(open_store(config.store_path)) == expected


def test_the_progress_bar_tells_rates_and_failures(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = _with_broken(manifest, tmp_path)
    extract_videos(_config(broken, tmp_path / "out", "extract.max_failed=6"))
    last = capsys.readouterr().err.split("\r")[-1]
    for part in ("11/11", "windows/s=", "failed=6", "decode=", "encode=", "write="):
        assert part in last


def test_shards_together_are_the_whole(manifest: Path, tmp_path: Path, expected: object) -> None:
    config = _config(manifest, tmp_path, "extract.batch_size=3")
    counts = [extract_videos(config, shard=f"{i}/3", progress=False).n_done for i in range(3)]
    assert counts == [4, 4, 4]
    content = _content(open_store(config.store_path))
    assert content.keys() == expected.keys()
    for video_id, row in content.items():
        assert row[1:] == expected[video_id][1:]
        close = [np.frombuffer(r[0], np.float32) for r in (row, expected[video_id])]
        np.testing.assert_allclose(*close, atol=1e-6)


def test_another_configuration_is_refused_and_nothing_is_lost(
    manifest: Path, tmp_path: Path, expected: object
) -> None:
    config = _config(manifest, tmp_path)
    extract_videos(config, progress=False)
    with pytest.raises(StoreVersionError) as caught:
        extract_videos(_config(manifest, tmp_path, "extract.hop=4"), progress=False)
    assert "windowing.hop" in str(caught.value)
    assert _content(open_store(config.store_path)) == expected


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("extract.clip_len=5", "clip_len=4"),
        ("extract.official_views=dense", "official_views=none"),
        ("extract.hop=2.5", "hop=2"),
        ("extract.encoder=toy:x", "toy:0"),
        ("extract.encoder=nothing", "FAMILY:NAME"),
        ("extract.device=cuda:99", "doctor"),
    ],
)
def test_settings_that_do_not_fit(manifest: Path, tmp_path: Path, override: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        extract_videos(_config(manifest, tmp_path, override), progress=False)
    assert fix in caught.value.fix


def test_missing_files_stop_the_run_before_it_starts(manifest: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", [Row("a", "a.mp4", "x", "train")])
    with pytest.raises(ManifestError, match="no file"):
        extract_videos(_config(tmp_path / "m.csv", tmp_path), progress=False)
    assert not (tmp_path / "store").exists()


def _with_broken(manifest: Path, root: Path) -> Path:
    """Four good videos among five that fail, each in its own way, and one that is cut."""
    good = [manifest.parent / f"{k}.mp4" for k in (1, 4, 7, 10)]
    for path in good:
        (root / path.name).write_bytes(path.read_bytes())
    (root / "text.mp4").write_text("hello")
    (root / "empty.mp4").touch()
    write_audio(root / "sound.m4a").rename(root / "sound.mp4")
    cut_file(good[3], root / "headless.mp4", 0.5)
    (root / "frames").mkdir()
    cut_file(write_video(root / "whole.mkv", 60, size=(64, 48)), root / "cut.mkv", 0.6)
    names = ["1.mp4", "text.mp4", "4.mp4", "empty.mp4", "sound.mp4", "7.mp4", "headless.mp4", "frames"]
    rows = [Row(name, name, "x", "train") for name in [*names, "cut.mkv", "10.mp4"]]
    rows.append(Row("behind", "10.mp4", "x", "train", start_s=99.0))
    write_manifest(root / "m.csv", rows)
    return root / "m.csv"


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_videos_become_ledger_rows(
    manifest: Path, tmp_path: Path, expected: dict[str, object], workers: int
) -> None:
    broken = _with_broken(manifest, tmp_path)
    config = _config(broken, tmp_path / "out", f"extract.workers={workers}", "extract.max_failed=6")
    report = extract_videos(config, progress=False)
    assert (report.n_videos, report.n_done, report.n_failed) == (11, 5, 6)
    lines = [json.loads(x) for f in report.failures_path.glob("*.jsonl") for x in f.read_text().splitlines()]
    assert {line["video_id"]: line["stage"] for line in lines} == dict.fromkeys(
        ["text.mp4", "empty.mp4", "sound.mp4", "headless.mp4", "frames", "behind"], "decode"
    )
    assert all(line["cause"] and line["time"] for line in lines)
    store = open_store(config.store_path)
    assert store.get("cut.mkv").status == "short"
    for k in (1, 4, 7, 10):
        np.testing.assert_allclose(
            store.get(f"{k}.mp4").values.reshape(-1),
            np.frombuffer(expected[f"v{k}"][0], np.float32),
            atol=1e-6,
        )


def test_features_that_are_no_numbers_are_failures(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = TorchEncoder.encode

    def sometimes_nan(self: TorchEncoder, clips: torch.Tensor) -> Encoded:
        encoded = encode(self, clips)
        first = encoded.features[:, :1]
        return encoded._replace(features=encoded.features / (first > first.mean()))

    monkeypatch.setattr(TorchEncoder, "encode", sometimes_nan)
    config = _config(manifest, tmp_path, "extract.max_failed=11", "store.dtype=float16")
    report = extract_videos(config, progress=False)
    assert report.n_failed > 0
    assert report.n_done + report.n_failed == N
    (ledger,) = report.failures_path.glob("*.jsonl")
    assert all(json.loads(line)["stage"] == "encode" for line in ledger.read_text().splitlines())


def test_a_batch_that_does_not_fit_says_what_to_do(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(self: TorchEncoder, clips: torch.Tensor) -> Encoded:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TorchEncoder, "encode", too_large)
    with pytest.raises(OutOfMemory) as caught:
        extract_videos(_config(manifest, tmp_path), progress=False)
    assert caught.value.fix == "--set extract.batch_size=2"
    assert "(5, 4, 32, 32, 3)" in caught.value.what


def test_too_many_failures_exit_4_and_retry_mends_them(manifest: Path, tmp_path: Path) -> None:
    broken = _with_broken(manifest, tmp_path)
    config = _config(broken, tmp_path / "out", "extract.max_failed=0.2")
    with pytest.raises(PartialResultError) as caught:
        extract_videos(config, progress=False)
    assert caught.value.exit_code == 4
    assert len(open_store(config.store_path)) == 5
    # Known failures are not tried again, and still count, until asked for.
    (tmp_path / "text.mp4").write_bytes((tmp_path / "4.mp4").read_bytes())
    with pytest.raises(PartialResultError):
        extract_videos(config, progress=False)
    assert len(open_store(config.store_path)) == 5
    many = _config(broken, tmp_path / "out", "extract.max_failed=5")
    report = extract_videos(many, retry_failed=True, progress=False)
    assert (report.n_done, report.n_skipped, report.n_failed) == (1, 5, 5)
    again = extract_videos(many, progress=False)
    assert (again.n_done, again.n_skipped, again.n_failed) == (0, 6, 5)


_CHILD = """
import sys
from dejavid.config import load_config
from dejavid.errors import DejaVidError
from dejavid.extract import extract_videos
if __name__ == "__main__":
    try:
        extract_videos(load_config(None, sys.argv[1:]), progress=False)
    except DejaVidError as error:
        print(error)
        sys.exit(error.exit_code)
"""


def _start(config: Config, tmp_path: Path) -> subprocess.Popen[str]:
    script = tmp_path / "child.py"
    script.write_text(_CHILD)
    section = config.extract
    overrides = [
        f"manifest.path={config.manifest.path}",
        f"run.dir={config.run.dir}",
        f"store.flush_rows={config.store.flush_rows}",
        f"extract.workers={section.workers}",
        "extract.encoder=toy:0",
        "extract.clip_len=4",
        "extract.frame_interval=2",
        "extract.hop=8",
        "extract.batch_size=5",
        "store.dtype=float32",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), *overrides], stdout=subprocess.PIPE, text=True, env=environment
    )


def _children(pid: int) -> set[int]:
    """Process ids below `pid`, through the fork server."""
    table = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        table[int(stat.parent.name)] = int(fields[1])
    found: set[int] = set()
    while new := {p for p, parent in table.items() if parent in found | {pid}} - found:
        found |= new
    return found


def _wait_for_parts(store: Path, count: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and len(list(store.glob("parts/[!.]*/COMMIT.json"))) < count:
        time.sleep(0.002)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_kill_9_loses_no_committed_video(
    manifest: Path, tmp_path: Path, expected: dict[str, object], workers: int
) -> None:
    config = _config(manifest, tmp_path, "store.flush_rows=1", f"extract.workers={workers}")
    process = _start(config, tmp_path)
    _wait_for_parts(config.store_path, 3, process)
    below = _children(process.pid)
    process.kill()
    process.wait()
    committed = len(open_store(config.store_path))
    assert committed >= 3
    # Decoders notice that they are orphans.
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
    report = extract_videos(config, progress=False)
    assert report.n_skipped == committed
    assert _content(open_store(config.store_path)) == expected


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_sigterm_commits_and_exits_75(
    manifest: Path, tmp_path: Path, expected: dict[str, object], workers: int
) -> None:
    rows = [Row(f"v{k}", f"{k}.mp4", "x", "train") for k in range(4)]
    for row in rows:
        (tmp_path / row.path).write_bytes((manifest.parent / row.path).read_bytes())
    slow = write_video(tmp_path / "slow.mp4", 1000, size=(64, 48))  # more work than there is time for
    rows += [Row(f"slow{k}", slow.name, "x", "train") for k in range(5000)]
    write_manifest(tmp_path / "m.csv", rows)
    config = _config(tmp_path / "m.csv", tmp_path / "out", f"extract.workers={workers}", "store.flush_rows=3")
    process = _start(config, tmp_path)
    _wait_for_parts(config.store_path, 1, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == Preempted.exit_code, output
    assert "run the same command again" in output
    content = _content(open_store(config.store_path))
    assert "v0" in content
    assert all(content[name] == expected[name] for name in content if name in expected)


def test_a_decoder_that_hangs_costs_one_video(
    manifest: Path, tmp_path: Path, expected: dict[str, object]
) -> None:
    rows = []
    for k in range(6):
        (tmp_path / f"{k}.mp4").write_bytes((manifest.parent / f"{k}.mp4").read_bytes())
        rows.append(Row(f"v{k}", f"{k}.mp4", "x", "train"))
    (tmp_path / "hang").mkdir()
    os.mkfifo(tmp_path / "hang" / "1.png")  # a folder of images, one of which never comes
    rows.insert(2, Row("hang", "hang", "x", "train"))
    write_manifest(tmp_path / "m.csv", rows)
    config = _config(
        tmp_path / "m.csv",
        tmp_path / "out",
        "extract.workers=1",
        "extract.timeout_s=3",
        "extract.max_failed=1",
    )
    report = extract_videos(config, progress=False)
    assert (report.n_done, report.n_failed) == (6, 1)
    (line,) = [
        json.loads(x) for f in report.failures_path.glob("*.jsonl") for x in f.read_text().splitlines()
    ]
    assert line["video_id"] == "hang"
    assert "not decoded within 3 s" in line["cause"]
    content = _content(open_store(config.store_path))
    assert all(content[f"v{k}"] == expected[f"v{k}"] for k in range(6))


def test_a_decoder_that_dies_costs_one_video(
    manifest: Path, tmp_path: Path, expected: dict[str, object]
) -> None:
    rows = []
    for k in range(4):
        (tmp_path / f"{k}.mp4").write_bytes((manifest.parent / f"{k}.mp4").read_bytes())
        rows.append(Row(f"v{k}", f"{k}.mp4", "x", "train"))
    fifo = tmp_path / "dies" / "1.png"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    rows.insert(2, Row("dies", "dies", "x", "train"))
    write_manifest(tmp_path / "m.csv", rows)

    def kill_reader() -> None:
        """Kills the process that reads the pipe, as the kernel does when memory runs out."""
        writer = os.open(fifo, os.O_WRONLY)  # returns once somebody reads
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                pid = int(link.parts[2])
                if pid != os.getpid() and link.readlink() == fifo:
                    os.kill(pid, signal.SIGKILL)
        os.close(writer)

    killer = threading.Thread(target=kill_reader)
    killer.start()
    config = _config(tmp_path / "m.csv", tmp_path / "out", "extract.workers=1", "extract.max_failed=1")
    report = extract_videos(config, progress=False)
    killer.join()
    assert (report.n_done, report.n_failed) == (4, 1)
    (line,) = [
        json.loads(x) for f in report.failures_path.glob("*.jsonl") for x in f.read_text().splitlines()
    ]
    assert (line["video_id"], line["cause"]) == ("dies", "the decoder's process died (exit code -9)")
    content = _content(open_store(config.store_path))
    assert all(content[f"v{k}"] == expected[f"v{k}"] for k in range(4))


def test_no_decode_process_at_all_is_no_silence(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: object, settings: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(pool._Worker, "__init__", no_memory)
    with pytest.raises(PartialResultError, match="12 of 12 videos failed"):
        extract_videos(_config(manifest, tmp_path, "extract.workers=2"), progress=False)
    (ledger,) = (tmp_path / "store" / "failed").glob("*.jsonl")
    assert "no decode process could be started" in ledger.read_text()


def test_decoders_are_replaced_after_a_while(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: object
) -> None:
    monkeypatch.setattr(pool, "_RECYCLE_AFTER", 5)
    started = []
    start = pool._Worker.__init__

    def counting(self: object, settings: object) -> None:
        started.append(self)
        start(self, settings)

    monkeypatch.setattr(pool._Worker, "__init__", counting)
    assert _extract(_config(manifest, tmp_path, "extract.workers=1")) == expected
    assert len(started) == 3  # 12 videos, 5 for each process


def test_a_full_disk_is_a_clear_error_and_the_store_stays_readable(
    manifest: Path, tmp_path: Path, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(manifest, tmp_path, "store.flush_rows=4")
    real = os.fsync

    def full(file: int) -> None:
        if list(config.store_path.glob("parts/[!.]*/COMMIT.json")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        extract_videos(config, progress=False)
    monkeypatch.undo()
    content = _content(open_store(config.store_path))
    assert 0 < len(content) < N
    assert all(content[name] == expected[name] for name in content)
    assert _extract(config) == expected
