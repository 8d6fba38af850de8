"""The list of videos: what is read back, and every problem in one error."""

from __future__ import annotations

from pathlib import Path

import pytest

from dejavid.errors import ManifestError
from dejavid.extract import Row, check_manifest, read_manifest, write_manifest


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


ROWS = (
    Row("a", "x/a.mp4", "clap, hands", "train"),
    Row("ü b", "b.mp4", "wave", "val", 1.5, 3.0),
    Row("c", "c.mp4"),
)


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    _touch(tmp_path, "x/a.mp4", "b.mp4", "c.mp4")
    write_manifest(tmp_path / name, ROWS)
    manifest = read_manifest(tmp_path / name)
    assert manifest.rows == ROWS
    assert manifest.file_of(ROWS[0]) == tmp_path / "x/a.mp4"


def test_another_root(tmp_path: Path) -> None:
    _touch(tmp_path / "videos", "x/a.mp4", "b.mp4", "c.mp4")
    write_manifest(tmp_path / "m.csv", ROWS)
    assert read_manifest(tmp_path / "m.csv", tmp_path / "videos").rows == ROWS
    with pytest.raises(ManifestError, match="3 problems"):
        read_manifest(tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv", check_files=False).rows == ROWS


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4")
    (tmp_path / "m.csv").write_text(
        "video_id,path,label,split,start_s,end_s\n"
        "a,a.mp4,wave,train,,\n"
        "a,a.mp4,wave,train,,\n"
        ",a.mp4,wave,train,,\n"
        "d,,wave,train,,\n"
        "e,../e.mp4,wave,train,,\n"
        "f,/etc/passwd,wave,train,,\n"
        "g,a.mp4,wave,,,\n"
        "h,a.mp4,,train,,\n"
        "i,a.mp4,wave,train,3,2\n"
        "j,a.mp4,wave,train,soon,\n"
        "k,a.mp4,wave,train,,nan\n"
        "l,absent.mp4,wave,train,,\n"
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "m.csv")
    text = caught.value.what
    for problem in (
        "a: in 2 rows",
        "row 3: no video_id",
        "d: no path",
        "e: path ../e.mp4 leaves the root",
        "f: path /etc/passwd leaves the root",
        "g: label 'wave' is in no split",
        "h: split 'train' but no label",
        "i: from 3.0 s to 2.0 s is no span",
        "j: start_s = 'soon' is no time",
        "k: end_s = 'nan' is no time",
        "l: no file absent.mp4",
    ):
        assert problem in text
    assert caught.value.exit_code == 3


def test_many_problems_are_counted_not_printed(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", [Row(f"v{k}", f"{k}.mp4", "x", "train") for k in range(1000)])
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "m.csv")
    assert caught.value.what.startswith("1000 problems")
    assert "and 980 more" in caught.value.what


@pytest.mark.parametrize(
    ("text", "cause"),
    [("video_id,path\na,b\n", "no column label, split"), ("video_id,path,label,split\n", "no rows")],
)
def test_tables_that_are_no_manifest(tmp_path: Path, text: str, cause: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ManifestError, match=cause):
        read_manifest(tmp_path / "m.csv")


def test_labels_without_training_videos(tmp_path: Path) -> None:
    rows = [
        Row("a", "a.mp4", "wave", "train"),
        Row("b", "b.mp4", "nod", "val"),
        Row("c", "c.mp4", "nod", "test"),
    ]
    write_manifest(tmp_path / "m.csv", rows)
    with pytest.raises(ManifestError) as caught:
        check_manifest(read_manifest(tmp_path / "m.csv", check_files=False))
    assert "label 'nod' has 1 videos in split 'val' and none in 'train'" in caught.value.what
    # A manifest that trains nothing may hold any label.
    write_manifest(tmp_path / "m.csv", rows[1:])
    check_manifest(read_manifest(tmp_path / "m.csv", check_files=False))
