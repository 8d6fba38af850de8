"""Annotation files as published, in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dejavid.errors import ConfigError, ManifestError
from dejavid.extract import Row, import_annotations, read_manifest, write_manifest


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_kinetics(tmp_path: Path) -> None:
    root = _touch(tmp_path / "k", "val/abseiling/--abc_000012_000022.mp4", "x/train/_d-e_000000_000010.mkv")
    (tmp_path / "k400.csv").write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        "abseiling,--abc,12,22,validate,0\n"
        '"playing, loudly",_d-e,0,10,train,0\n'
        "abseiling,gone,5,15,train,0\n"
    )
    imported = import_annotations("kinetics", tmp_path / "k400.csv", root=root)
    assert imported.rows == [
        Row("--abc_000012_000022", "val/abseiling/--abc_000012_000022.mp4", "abseiling", "val"),
        Row("_d-e_000000_000010", "x/train/_d-e_000000_000010.mkv", "playing, loudly", "train"),
    ]
    assert imported.missing == ["gone_000005_000015"]
    write_manifest(tmp_path / "m.csv", imported.rows)
    assert list(read_manifest(tmp_path / "m.csv", root).rows) == imported.rows


def test_something_something(tmp_path: Path) -> None:
    root = _touch(tmp_path / "v", "78687.webm", "42/00001.jpg")
    (tmp_path / "labels.json").write_text(
        json.dumps({"Holding something": "0", "Putting something, badly": "1"})
    )
    annotations = [
        {
            "id": "78687",
            "label": "holding a cup",
            "template": "Holding [something]",
            "placeholders": ["a cup"],
        },
        {"id": "42", "label": "putting", "template": "Putting [something], badly"},
    ]
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    options = {"root": root, "split": "val", "classes": tmp_path / "labels.json"}
    imported = import_annotations("ssv2", tmp_path / "val.json", **options)
    assert imported.rows == [
        Row("78687", "78687.webm", "Holding something", "val"),
        Row("42", "42", "Putting something, badly", "val"),
    ]
    (tmp_path / "val.json").write_text(json.dumps([{"id": "1", "template": "Eating [something]"}]))
    with pytest.raises(ManifestError, match="unknown label 'Eating something'"):
        import_annotations("ssv2", tmp_path / "val.json", **options)


def test_hmdb51(tmp_path: Path) -> None:
    root = _touch(tmp_path / "v", "brush_hair/a_b.avi", "brush_hair/c d.avi", "wave/e.avi")
    (tmp_path / "brush_hair_test_split1.txt").write_text("a_b.avi 1 \nc d.avi 2 \nunused.avi 0 \n")
    (tmp_path / "brush_hair_test_split2.txt").write_text("a_b.avi 2 \n")
    (tmp_path / "wave_test_split1.txt").write_text("e.avi 2 \nf.avi 1 \n")
    imported = import_annotations("hmdb51", tmp_path, root=root)
    assert imported.rows == [
        Row("brush_hair/a_b", "brush_hair/a_b.avi", "brush hair", "train"),
        Row("brush_hair/c d", "brush_hair/c d.avi", "brush hair", "val"),
        Row("wave/e", "wave/e.avi", "wave", "val"),
    ]
    assert imported.missing == ["wave/f"]
    second = import_annotations("hmdb51", tmp_path, root=root, fold=2)
    assert [row.split for row in second.rows] == ["val"]


def test_ucf101(tmp_path: Path) -> None:
    root = _touch(tmp_path / "v", "Yo/v_Yo_g01.avi", "Yo/v_Yo_g02.avi")
    (tmp_path / "trainlist01.txt").write_text("Yo/v_Yo_g01.avi 101\r\n")
    (tmp_path / "testlist01.txt").write_text("Yo/v_Yo_g02.avi\r\n")
    imported = import_annotations("ucf101", tmp_path, root=root)
    assert imported.rows == [
        Row("Yo/v_Yo_g01", "Yo/v_Yo_g01.avi", "Yo", "train"),
        Row("Yo/v_Yo_g02", "Yo/v_Yo_g02.avi", "Yo", "val"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", 'id,name\r\n0,clap\r\n1,"push, hard"\r\n'),
        ("c.json", '{"0": "clap", "1": "push, hard"}'),
        ("c.txt", "clap\npush, hard\n"),
    ],
)
def test_lists_of_paths_and_numbers(tmp_path: Path, name: str, text: str) -> None:
    root = _touch(tmp_path / "v", "train/a.mp4", "b.mp4", "raw/c/img_00001.jpg")
    (tmp_path / name).write_text(text)
    (tmp_path / "list.txt").write_text("train/a.mp4 1\nb.mp4,0\nraw/c 48 1\n")
    imported = import_annotations(
        "list", tmp_path / "list.txt", root=root, split="val", classes=tmp_path / name
    )
    assert imported.rows == [
        Row("train/a", "train/a.mp4", "push, hard", "val"),
        Row("b", "b.mp4", "clap", "val"),
        Row("raw/c", "raw/c", "push, hard", "val"),
    ]
    numbered = import_annotations("list", tmp_path / "list.txt", root=root)
    assert [row.label for row in numbered.rows] == ["1", "0", "1"]


def test_every_wrong_line_is_listed(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("clap\n")
    (tmp_path / "list.txt").write_text("a.mp4 0\na.mp4\nb.mp4 x\nc.mp4 7\n")
    with pytest.raises(ManifestError) as caught:
        import_annotations("list", tmp_path / "list.txt", root=tmp_path, classes=tmp_path / "c.txt")
    assert caught.value.what.startswith("3 problems")
    assert "line 4: unknown label 7, there are 1 classes" in caught.value.what


def test_a_folder_per_class(tmp_path: Path) -> None:
    root = _touch(tmp_path, "train/clap/a.mp4", "train/wave/b/1.jpg", "train/wave/c.txt", "val/clap/d.webm")
    train = import_annotations("folders", root, root=root)
    val = import_annotations("folders", root, root=root, split="val")
    assert train.rows == [
        Row("train/clap/a", "train/clap/a.mp4", "clap", "train"),
        Row("train/wave/b", "train/wave/b", "wave", "train"),
    ]
    assert val.rows == [Row("val/clap/d", "val/clap/d.webm", "clap", "val")]


@pytest.mark.parametrize("kind", ["kinetics", "ssv2", "hmdb51", "ucf101", "list", "folders"])
def test_what_is_no_annotation_is_an_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ManifestError):
        import_annotations(kind, tmp_path / "absent", root=tmp_path)


def test_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no importer"):
        import_annotations("imagenet", tmp_path, root=tmp_path)
