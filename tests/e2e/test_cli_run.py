"""The command line as a user meets it: real video files in, a table out, and what bad input gets."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from command import Command

from dejavid.store import open_store

PIPELINE = Path(__file__).parents[2] / "pipeline.yaml"


@pytest.fixture
def dejavid(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return command


def write_video(path: Path, n_frames: int, rising: bool, seed: int) -> None:
    """A square that moves up or down over a textured ground."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(60, 120, (48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(n_frames):
            image = ground.copy()
            place = int((k if rising else n_frames - 1 - k) / max(n_frames - 1, 1) * 36)
            image[36 - place : 48 - place, 26:38] = (250, 240, 20)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


def write_manifest(path: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("video_id", "path", "label", "split"))
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 18 small mp4 files of two classes."""
    folder = tmp_path_factory.mktemp("footage")
    for split, count in (("train", 6), ("val", 3)):
        for label in ("up", "down"):
            for number in range(count):
                seed = 100 * (split == "val") + number
                write_video(folder / f"{split}-{label}-{number}.mp4", 30 + 3 * number, label == "up", seed)
    return folder


def rows_of(folder: Path) -> list[tuple[str, str, str, str]]:
    names = sorted(path.stem for path in folder.glob("*.mp4"))
    return [(name, f"{name}.mp4", name.split("-")[1], name.split("-")[0]) for name in names]


@pytest.fixture
def settings(tmp_path: Path, footage: Path) -> list[object]:
    """Arguments of a small run on the footage."""
    manifest = write_manifest(tmp_path / "videos.csv", rows_of(footage))
    keys = {
        "manifest.path": manifest,
        "manifest.root": footage,
        "run.dir": tmp_path / "run",
        "extract.encoder": "toy:0",
        "extract.clip_len": 4,
        "extract.frame_interval": 2,
        "extract.hop": 4,
        "extract.workers": 0,
        "centroids.length": 4,
        "train.epochs": 30,
        "train.batch_size": 4,
        "train.lr": 0.1,
    }
    return [
        PIPELINE,
        "--quiet",
        *(part for key, value in keys.items() for part in ("--set", f"{key}={value}")),
    ]


def test_run_goes_from_videos_to_a_table_and_skips_what_is_done(
    dejavid: Command, settings: list[object], tmp_path: Path
) -> None:
    first = dejavid("run", *settings)
    assert first.code == 0, first.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["methods"]) == {"mean_pool", "nearest_centroid", "dejavid"}
    for name, row in results["methods"].items():
        assert (row["n_scored"], row["n_split"]) == (6, 6)
        assert f"{100 * row['top1']:.1f} %" in first.out
        assert name in first.out
    assert results["methods"]["dejavid"]["top1"] == 1.0
    assert str(tmp_path / "run" / "results.json") in first.out
    second = dejavid("run", *settings)
    assert second.code == 0
    for stage in ("extract", "centroids", "train"):
        assert f"{stage}: skipped" in second.out


def test_the_stages_are_commands_too(dejavid: Command, settings: list[object], tmp_path: Path) -> None:
    assert dejavid("extract", *settings).code == 0
    assert dejavid("train", *settings).code == 0
    evaluated = dejavid("evaluate", *[s for s in settings if s != "--quiet"])
    assert evaluated.code == 0, evaluated.err
    assert (tmp_path / "run" / "results.json").exists()


def test_a_broken_video_is_a_ledger_row_and_the_rest_goes_on(
    dejavid: Command, settings: list[object], tmp_path: Path, footage: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in footage.glob("*.mp4"):
        (folder / path.name).write_bytes(path.read_bytes())
    whole = (folder / "train-up-0.mp4").read_bytes()
    (folder / "train-up-0.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "val-up-0.mp4").write_text("not a video")
    args = [*settings, "--set", f"manifest.root={folder}", "--set", "extract.max_failed=2"]
    result = dejavid("run", *args)
    assert result.code == 0, result.err
    ledger = [
        json.loads(line) for path in (tmp_path / "run/store/failed").glob("*.jsonl") for line in path.open()
    ]
    assert {row["video_id"] for row in ledger} == {"train-up-0", "val-up-0"}
    assert all(row["cause"] for row in ledger)
    methods = json.loads((tmp_path / "run" / "results.json").read_text())["methods"]
    assert {(row["n_scored"], row["n_split"]) for row in methods.values()} == {(5, 6)}


def test_too_many_failures_stop_the_run_but_keep_the_rest(
    dejavid: Command, settings: list[object], tmp_path: Path, footage: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, path in enumerate(sorted(footage.glob("*.mp4"))):
        (folder / path.name).write_bytes(path.read_bytes() if number % 2 else b"")
    result = dejavid("run", *settings, "--set", f"manifest.root={folder}")
    assert result.code == 4
    assert "where:" in result.err
    info = dejavid("store", "info", tmp_path / "run" / "store")
    assert info.code == 0
    assert "9 videos" in info.out


def _duplicate(rows: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    return [*rows, rows[0]]


def _lost_file(rows: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    return [*rows, ("ghost", "ghost.mp4", "up", "train")]


def _unknown_label(rows: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    return [(i, p, "sideways" if i == "val-up-0" else label, split) for i, p, label, split in rows]


@pytest.mark.parametrize(
    ("spoil", "named"), [(_duplicate, "train-down-0"), (_lost_file, "ghost"), (_unknown_label, "sideways")]
)
def test_a_wrong_manifest_stops_before_any_work(
    dejavid: Command,
    settings: list[object],
    footage: Path,
    tmp_path: Path,
    spoil: Callable[..., list[tuple[str, str, str, str]]],
    named: str,
) -> None:
    write_manifest(tmp_path / "videos.csv", spoil(rows_of(footage)))
    result = dejavid("run", *settings)
    assert result.code == 3
    assert named in result.err
    assert "fix:" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["run", "none.yaml"], 3, "none.yaml"),
        (["run"], 3, "there is no pipeline.yaml here"),
        (["run", str(PIPELINE), "--set", "extract.hopp=8"], 3, "did you mean 'extract.hop'"),
        (["run", str(PIPELINE), "--set", "manifest.path=none.csv"], 3, "none.csv"),
        (["evaluate", str(PIPELINE)], 5, "store"),
        (["train", str(PIPELINE)], 5, "store"),
        (["config", "check", str(PIPELINE), "--set", "train.lr=-1"], 3, "train.lr"),
        (["no-such-command"], 2, "no-such-command"),
    ],
)
def test_wrong_calls(dejavid: Command, arguments: list[str], code: int, part: str) -> None:
    result = dejavid(*arguments)
    assert result.code == code, result.err
    assert part in result.err


def test_a_store_of_other_settings_is_refused_and_names_the_key(
    dejavid: Command, settings: list[object], tmp_path: Path
) -> None:
    assert dejavid("extract", *settings).code == 0
    result = dejavid("extract", *settings, "--set", "extract.hop=6")
    assert result.code == 5
    assert "hop" in result.err
    assert dejavid("run", *settings).code == 0  # nothing was lost


def test_a_flipped_byte_is_found_repaired_and_only_its_videos_are_made_again(
    dejavid: Command, settings: list[object], tmp_path: Path
) -> None:
    store = tmp_path / "run" / "store"
    assert dejavid("extract", *settings, "--set", "store.flush_rows=20").code == 0
    undamaged = {i: open_store(store).get(i).values for i in open_store(store).ids()}
    assert dejavid("store", "verify", store).code == 0
    shard = max((store / "parts").rglob("tse/c/*/*"), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(shard.read_bytes())
    data[7] ^= 16
    shard.write_bytes(data)
    found = dejavid("store", "verify", store)
    assert found.code == 5
    assert "video " in found.out
    repaired = dejavid("store", "repair", store)
    assert repaired.code == 0
    lost = int(repaired.out.splitlines()[-1].split()[0])
    assert 0 < lost < len(undamaged)
    again = dejavid("extract", *settings)
    assert f"extract: {lost} videos, " in again.out
    after = open_store(store)
    assert after.ids() == sorted(undamaged)
    assert all(np.array_equal(after.get(i).values, values) for i, values in undamaged.items())


def test_store_commands_copy_a_store(dejavid: Command, settings: list[object], tmp_path: Path) -> None:
    store, manifest = tmp_path / "run" / "store", tmp_path / "videos.csv"
    assert dejavid("extract", *settings).code == 0
    assert json.loads(dejavid("store", "info", store, "--json").out)["n_videos"] == 18
    assert "12 of 12 done" in dejavid("store", "status", store, "--manifest", manifest).out
    for arguments in (
        ("compact", store),
        ("convert", store, tmp_path / "copy", "--format", "hdf5", "--dtype", "float32"),
        ("merge", tmp_path / "merged", store),
        ("export", store, tmp_path / "npy", "--layout", "npy", "--manifest", manifest),
        ("import", tmp_path / "npy", tmp_path / "back", "--layout", "npy"),
    ):
        result = dejavid("store", *arguments)
        assert result.code == 0, result.err
    for copy in ("copy", "merged", "back"):
        assert open_store(tmp_path / copy).ids() == open_store(store).ids()
    assert dejavid("store", "info", tmp_path / "nothing").code == 5


def test_annotations_become_a_manifest(dejavid: Command, tmp_path: Path, footage: Path) -> None:
    names = sorted(path.name for path in footage.glob("train-*.mp4"))
    listing = "".join(f"{name} {int('up' in name)}\n" for name in names)
    (tmp_path / "train.txt").write_text(listing + "lost.mp4 0\n")
    arguments = ("manifest", "import", "list", "train.txt", "videos.csv", "--root", footage)
    result = dejavid(*arguments)
    assert result.code == 0, result.err
    assert "12 videos, 1 of the annotations have no file" in result.out
    assert "lost" in result.out
    assert dejavid(*arguments).code == 3  # never over a file that is there
    (tmp_path / "val.txt").write_text("val-up-0.mp4 1\n")
    added = (
        "manifest",
        "import",
        "list",
        "val.txt",
        "videos.csv",
        "--root",
        footage,
        "--split",
        "val",
        "--append",
    )
    assert dejavid(*added).code == 0
    checked = ("--set", "manifest.path=videos.csv", "--set", f"manifest.root={footage}")
    assert "12 train, 1 val videos of 2 classes" in dejavid("manifest", "check", PIPELINE, *checked).out


def test_an_executor_refuses_what_it_does_not_know(dejavid: Command, settings: list[object]) -> None:
    wrong = dejavid("extract", *settings, "--executor", "ray", "--parameter", "nodes=1")
    assert wrong.code == 3
    assert "nodes" in wrong.err
    assert dejavid("extract", *settings, "--executor", "slurmy").code == 2


def test_config_show_is_a_configuration(dejavid: Command, tmp_path: Path) -> None:
    shown = dejavid("config", "show", "--set", "extract.hop=3")
    assert shown.code == 0
    (tmp_path / "mine.yaml").write_text(shown.out)
    assert dejavid("config", "check", "mine.yaml").code == 0
    assert "hop: 3" in dejavid("config", "show", "mine.yaml").out


def test_doctor_names_every_part(dejavid: Command) -> None:
    result = dejavid("doctor")
    assert result.code == 0
    for part in ("python", "torch", "cuda device", "cupy", "numba", "pyav", "decord", "zarr", "h5py"):
        assert part in result.out
    assert "dejavid[gpu]" in result.out  # how to get what is missing here, or what is there


def test_help_does_not_import_anything_heavy() -> None:
    """Every command's --help works with torch, zarr and numba made impossible to import."""
    code = (
        "import sys\n"
        "heavy = ('torch', 'zarr', 'numba', 'av', 'transformers', 'sklearn', 'pyarrow')\n"
        "sys.modules.update(dict.fromkeys(heavy))\n"
        "sys.argv = ['dejavid', *sys.argv[1:]]\n"
        "from dejavid.cli import main\n"
        "main()\n"
    )
    for arguments in (["--help"], ["run", "--help"], ["extract", "--help"], ["store", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout


def test_a_fault_of_ours_is_no_traceback(dejavid: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("dejavid.config.load_config", broken)
    result = dejavid("config", "check", PIPELINE)
    assert result.code == 1
    assert "broken on purpose" in result.err
    assert "--debug" in result.err
