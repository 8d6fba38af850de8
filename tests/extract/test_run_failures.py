"""What goes wrong with videos, batches and disks: a ledger row or a clear error, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from small_extraction import N_VIDEOS, Content, content_of, extracted, run_config, write_broken

from dejavid.errors import OutOfMemory, PartialResultError, StoreError
from dejavid.extract import extract_videos
from dejavid.extract.encoders import Encoded, TorchEncoder
from dejavid.store import open_store


def test_the_progress_bar_tells_rates_and_failures(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write_broken(manifest, tmp_path)
    extract_videos(run_config(broken, tmp_path / "out", "extract.max_failed=6"))
    last = capsys.readouterr().err.split("\r")[-1]
    for part in ("11/11", "windows/s=", "failed=6", "decode=", "encode=", "write="):
        assert part in last


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_videos_become_ledger_rows(
    manifest: Path, tmp_path: Path, expected: Content, workers: int
) -> None:
    broken = write_broken(manifest, tmp_path)
    config = run_config(broken, tmp_path / "out", f"extract.workers={workers}", "extract.max_failed=6")
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
    config = run_config(manifest, tmp_path, "extract.max_failed=11", "store.dtype=float16")
    report = extract_videos(config, progress=False)
    assert report.n_failed > 0
    assert report.n_done + report.n_failed == N_VIDEOS
    (ledger,) = report.failures_path.glob("*.jsonl")
    assert all(json.loads(line)["stage"] == "encode" for line in ledger.read_text().splitlines())


def test_a_batch_that_does_not_fit_says_what_to_do(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(self: TorchEncoder, clips: torch.Tensor) -> Encoded:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TorchEncoder, "encode", too_large)
    with pytest.raises(OutOfMemory) as caught:
        extract_videos(run_config(manifest, tmp_path), progress=False)
    assert caught.value.fix == "--set extract.batch_size=2"
    assert "(5, 4, 32, 32, 3)" in caught.value.what


def test_too_many_failures_exit_4_and_retry_mends_them(manifest: Path, tmp_path: Path) -> None:
    broken = write_broken(manifest, tmp_path)
    config = run_config(broken, tmp_path / "out", "extract.max_failed=0.2")
    with pytest.raises(PartialResultError) as caught:
        extract_videos(config, progress=False)
    assert caught.value.exit_code == 4
    assert len(open_store(config.store_path)) == 5
    # Known failures are not tried again, and still count, until asked for.
    (tmp_path / "text.mp4").write_bytes((tmp_path / "4.mp4").read_bytes())
    with pytest.raises(PartialResultError):
        extract_videos(config, progress=False)
    assert len(open_store(config.store_path)) == 5
    many = run_config(broken, tmp_path / "out", "extract.max_failed=5")
    report = extract_videos(many, retry_failed=True, progress=False)
    assert (report.n_done, report.n_skipped, report.n_failed) == (1, 5, 5)
    again = extract_videos(many, progress=False)
    assert (again.n_done, again.n_skipped, again.n_failed) == (0, 6, 5)


def test_a_full_disk_is_a_clear_error_and_the_store_stays_readable(
    manifest: Path, tmp_path: Path, expected: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(manifest, tmp_path, "store.flush_rows=4")
    real = os.fsync

    def full(file: int) -> None:
        if list(config.store_path.glob("parts/[!.]*/COMMIT.json")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        extract_videos(config, progress=False)
    monkeypatch.undo()
    content = content_of(open_store(config.store_path))
    assert 0 < len(content) < N_VIDEOS
    assert all(content[name] == expected[name] for name in content)
    assert extracted(config) == expected
