"""Killed and stopped runs, and decode processes that hang, die or do not start."""

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

import pytest
from numbered_videos import write_video
from small_extraction import Content, content_of, extracted, run_config

from dejavid.config import Config
from dejavid.errors import PartialResultError, Preempted
from dejavid.extract import Row, extract_videos, pool, write_manifest
from dejavid.store import open_store

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
    manifest: Path, tmp_path: Path, expected: Content, workers: int
) -> None:
    config = run_config(manifest, tmp_path, "store.flush_rows=1", f"extract.workers={workers}")
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
    assert content_of(open_store(config.store_path)) == expected


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_sigterm_commits_and_exits_75(
    manifest: Path, tmp_path: Path, expected: Content, workers: int
) -> None:
    rows = [Row(f"v{k}", f"{k}.mp4", "x", "train") for k in range(4)]
    for row in rows:
        (tmp_path / row.path).write_bytes((manifest.parent / row.path).read_bytes())
    slow = write_video(tmp_path / "slow.mp4", 1000, size=(64, 48))  # more work than there is time for
    rows += [Row(f"slow{k}", slow.name, "x", "train") for k in range(5000)]
    write_manifest(tmp_path / "m.csv", rows)
    config = run_config(
        tmp_path / "m.csv", tmp_path / "out", f"extract.workers={workers}", "store.flush_rows=3"
    )
    process = _start(config, tmp_path)
    _wait_for_parts(config.store_path, 1, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == Preempted.exit_code, output
    assert "run the same command again" in output
    content = content_of(open_store(config.store_path))
    assert "v0" in content
    assert all(content[name] == expected[name] for name in content if name in expected)


def test_a_decoder_that_hangs_costs_one_video(manifest: Path, tmp_path: Path, expected: Content) -> None:
    rows = []
    for k in range(6):
        (tmp_path / f"{k}.mp4").write_bytes((manifest.parent / f"{k}.mp4").read_bytes())
        rows.append(Row(f"v{k}", f"{k}.mp4", "x", "train"))
    (tmp_path / "hang").mkdir()
    os.mkfifo(tmp_path / "hang" / "1.png")  # a folder of images, one of which never comes
    rows.insert(2, Row("hang", "hang", "x", "train"))
    write_manifest(tmp_path / "m.csv", rows)
    config = run_config(
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
    content = content_of(open_store(config.store_path))
    assert all(content[f"v{k}"] == expected[f"v{k}"] for k in range(6))


def test_a_decoder_that_dies_costs_one_video(manifest: Path, tmp_path: Path, expected: Content) -> None:
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
    config = run_config(tmp_path / "m.csv", tmp_path / "out", "extract.workers=1", "extract.max_failed=1")
    report = extract_videos(config, progress=False)
    killer.join()
    assert (report.n_done, report.n_failed) == (4, 1)
    (line,) = [
        json.loads(x) for f in report.failures_path.glob("*.jsonl") for x in f.read_text().splitlines()
    ]
    assert (line["video_id"], line["cause"]) == ("dies", "the decoder's process died (exit code -9)")
    content = content_of(open_store(config.store_path))
    assert all(content[f"v{k}"] == expected[f"v{k}"] for k in range(4))


def test_no_decode_process_at_all_is_no_silence(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: object, settings: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(pool._Worker, "__init__", no_memory)
    with pytest.raises(PartialResultError, match="12 of 12 videos failed"):
        extract_videos(run_config(manifest, tmp_path, "extract.workers=2"), progress=False)
    (ledger,) = (tmp_path / "store" / "failed").glob("*.jsonl")
    assert "no decode process could be started" in ledger.read_text()


def test_decoders_are_replaced_after_a_while(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Content
) -> None:
    monkeypatch.setattr(pool, "_RECYCLE_AFTER", 5)
    started = []
    start = pool._Worker.__init__

    def counting(self: object, settings: object) -> None:
        started.append(self)
        start(self, settings)

    monkeypatch.setattr(pool._Worker, "__init__", counting)
    assert extracted(run_config(manifest, tmp_path, "extract.workers=1")) == expected
    assert len(started) == 3  # 12 videos, 5 for each process
