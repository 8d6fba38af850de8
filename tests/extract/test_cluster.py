"""Shards as schedulers see them: their variables, plain processes, submitit, Ray with a worker killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered_videos import write_video

from dejavid.config import Config, load_config
from dejavid.errors import ConfigError, MissingDependencyError, PartialResultError
from dejavid.extract import Row, extract_videos, write_manifest
from dejavid.extract.cluster import extract_on_ray, extract_on_slurm
from dejavid.extract.shards import parse_shard
from dejavid.store import open_store

SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "8"}


@pytest.mark.parametrize(
    ("shard", "environ", "expected"),
    [
        ("2/5", {}, (2, 5)),
        (None, {}, (0, 1)),
        (None, SLURM, (3, 8)),
        (None, {**SLURM, "SLURM_ARRAY_TASK_ID": "10", "SLURM_ARRAY_TASK_STEP": "2"}, (3, 8)),
        (None, {"JOB_COMPLETION_INDEX": "1", "JOB_COMPLETIONS": "4"}, (1, 4)),
        ("0/2", SLURM, (0, 2)),
    ],
)
def test_shards_from_words_and_schedulers(
    shard: str | None, environ: dict[str, str], expected: tuple[int, int]
) -> None:
    assert parse_shard(shard, environ) == expected


@pytest.mark.parametrize(
    ("shard", "environ"),
    [
        ("5/5", {}),
        ("1", {}),
        ("a/b", {}),
        ("-1/3", {}),
        (None, {"JOB_COMPLETION_INDEX": "1"}),
        (None, {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "2"}),
    ],
)
def test_what_is_no_shard(shard: str | None, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        parse_shard(shard, environ)


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    rows = []
    for k in range(8):
        write_video(tmp_path / f"{k}.mp4", 12 + 5 * k, size=(64, 48))
        rows.append(Row(f"v{k}", f"{k}.mp4", "x", "train"))
    (tmp_path / "bad.mp4").write_text("no video")
    rows.append(Row("bad", "bad.mp4", "x", "train"))
    write_manifest(tmp_path / "m.csv", rows)
    return [
        f"manifest.path={tmp_path / 'm.csv'}",
        f"run.dir={tmp_path / 'run'}",
        "extract.encoder=toy:0",
        "extract.clip_len=4",
        "extract.workers=0",
        "extract.device=cpu",
        "extract.max_failed=1",
        "store.flush_rows=1",
    ]


def _check_whole(config: Config, tmp_path: Path) -> None:
    """All eight videos are there, once, with the values of an undivided run."""
    whole = config.model_copy(update={"run": config.run.model_copy(update={"dir": tmp_path / "whole"})})
    extract_videos(whole, progress=False)
    expected, store = open_store(whole.store_path), open_store(config.store_path)
    assert store.ids() == expected.ids() == [f"v{k}" for k in range(8)]
    for video_id in store.ids():
        np.testing.assert_allclose(store.get(video_id).values, expected.get(video_id).values, atol=2e-3)


def test_two_plain_processes(overrides: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\nfrom dejavid.config import load_config\nfrom dejavid.extract import extract_videos\n"
        "extract_videos(load_config(None, sys.argv[1:]), progress=False)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *overrides],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "JOB_COMPLETION_INDEX": str(i),
                "JOB_COMPLETIONS": "2",
            },
            cwd=tmp_path,
        )
        for i in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    _check_whole(load_config(None, overrides), tmp_path)


@pytest.mark.slow
def test_submitit_runs_an_array(overrides: list[str], tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is optional and not installed")
    config = load_config(None, overrides)
    report = extract_on_slurm(
        config, shards=2, cluster="local", parameters={"timeout_min": 5}, progress=False
    )
    assert (report.n_videos, report.n_done, report.n_failed) == (9, 8, 1)
    _check_whole(config, tmp_path)
    # Each shard alone may fail a video; all together may not.
    strict = load_config(None, [*overrides, "extract.max_failed=0"])
    with pytest.raises(PartialResultError):
        extract_on_slurm(strict, shards=2, cluster="local", parameters={"timeout_min": 5}, progress=False)


@pytest.mark.slow
def test_ray_with_a_worker_killed_on_the_way(overrides: list[str], tmp_path: Path) -> None:
    ray: Any = pytest.importorskip("ray", reason="Ray is optional and not installed")
    slow = write_video(tmp_path / "slow.mp4", 1500, size=(64, 48))
    rows = [Row(f"v{k}", f"{k}.mp4", "x", "train") for k in range(8)]
    rows += [Row(f"slow{k}", slow.name, "x", "train") for k in range(40)]
    write_manifest(tmp_path / "m.csv", rows)
    config = load_config(None, overrides)
    killed: list[int] = []

    def kill_one() -> None:
        while len(list(config.store_path.glob("parts/[!.]*/COMMIT.json"))) < 6:
            time.sleep(0.02)
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            if not killed and process.read_bytes().startswith(b"ray::_Actor.run"):
                killed.append(int(process.parent.name))
                os.kill(killed[0], signal.SIGKILL)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        killer = threading.Thread(target=kill_one, daemon=True)
        killer.start()
        report = extract_on_ray(config, workers=2, progress=False)
        killer.join()
    finally:
        ray.shutdown()
    assert killed
    assert report.n_videos == len(rows)
    assert report.n_skipped > 0  # what the killed worker had committed
    assert report.n_done + report.n_skipped == len(rows)
    store = open_store(config.store_path)
    assert set(store.ids()) == {row.video_id for row in rows}
    first = store.get("slow0").values
    assert all((store.get(f"slow{k}").values == first).all() for k in range(40))


@pytest.mark.parametrize(
    ("module", "run", "extra"), [("submitit", extract_on_slurm, "slurm"), ("ray", extract_on_ray, "ray")]
)
def test_missing_engines_name_their_extra(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, module: str, run: Any, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError) as caught:
        run(load_config(None, overrides), **{"shards" if module == "submitit" else "workers": 2})
    assert f"dejavid[{extra}]" in caught.value.fix
