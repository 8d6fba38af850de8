"""Annotation files as the datasets publish them -> rows of a manifest."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ManifestError
from .decode import IMAGE_SUFFIXES
from .manifest import Row, raise_all

VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")


@dataclass(frozen=True)
class Request:
    """What an importer gets.

    Args:
        source: annotation file or folder.
        root: folder of the videos.
        split: name of the split, for files that do not tell it.
        fold: which of the published splits (HMDB51 and UCF101 have three).
        classes: the file that names the classes, for annotations that number them.
    """

    source: Path
    root: Path
    split: str
    fold: int
    classes: Path | None


@dataclass(frozen=True)
class Imported:
    """The rows whose files are there, and the ids of those whose are not."""

    rows: list[Row]
    missing: list[str]


def import_annotations(
    kind: str,
    source: Path | str,
    *,
    root: Path | str,
    split: str = "train",
    fold: int = 1,
    classes: Path | str | None = None,
) -> Imported:
    """Reads the annotations of a dataset.

    Args:
        kind: a key of `IMPORTERS`.
        source, root, split, fold, classes: see `Request`.

    Raises:
        ConfigError: an unknown kind.
        ManifestError: lists every line that cannot be understood.
    """
    if kind not in IMPORTERS:
        raise ConfigError(
            f"no importer {kind!r}", where="manifest import", fix=f"one of {', '.join(IMPORTERS)}"
        )
    request = Request(Path(source), Path(root), split, fold, None if classes is None else Path(classes))
    try:
        rows = IMPORTERS[kind](request)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ManifestError(
            f"cannot read the annotations: {error}", where=str(source), fix="check the path and the kind"
        ) from None
    if not rows:
        raise ManifestError(f"no {kind} annotations in it", where=str(source), fix="check the kind")
    there = [row for row in rows if row.path and (request.root / row.path).exists()]
    found = {row.video_id for row in there}
    return Imported(there, [row.video_id for row in rows if row.video_id not in found])


def _kinetics(request: Request) -> list[Row]:
    """CSV label, youtube_id, time_start, time_end[, split]; files ID_000012_000022.*, anywhere below root."""
    files = _files_by_stem(request.root)
    rows, problems = [], []
    with request.source.open(newline="", encoding="utf-8") as file:
        for number, line in enumerate(csv.DictReader(file), start=2):
            try:
                span = f"{round(float(line['time_start'])):06d}_{round(float(line['time_end'])):06d}"
                name = f"{line['youtube_id']}_{span}"
                split = {"validate": "val"}.get(line.get("split") or "", line.get("split") or request.split)
                rows.append(Row(name, files.get(name, ""), line["label"], split))
            except (KeyError, TypeError, ValueError) as error:
                problems.append(f"line {number}: no {error}")
    raise_all(problems, request.source, "Kinetics files have label, youtube_id, time_start, time_end, split")
    return rows


def _ssv2(request: Request) -> list[Row]:
    """JSON list of {id, template}; the label is the template without brackets, as in labels.json."""
    files = _files_by_stem(request.root)
    known = set(json.loads(request.classes.read_text(encoding="utf-8"))) if request.classes else None
    rows, problems = [], []
    for number, item in enumerate(json.loads(request.source.read_text(encoding="utf-8")), start=1):
        label = re.sub(r"[\[\]]", "", item.get("template", ""))
        if known is not None and label not in known:
            problems.append(f"item {number}: unknown label {label!r}")
        name = str(item["id"])
        rows.append(Row(name, files.get(name, ""), label, request.split if label else ""))
    raise_all(problems, request.source, f"is {request.classes} the labels.json of these annotations?")
    return rows


def _hmdb51(request: Request) -> list[Row]:
    """Folder of CLASS_test_splitN.txt, lines `NAME.avi CODE`: 1 trains, 2 validates, 0 is left out."""
    rows, problems = [], []
    ending = f"_test_split{request.fold}.txt"
    for file in sorted(request.source.glob(f"*{ending}")):
        label = file.name.removesuffix(ending)
        for number, line in _lines(file):
            name, _, code = line.rpartition(" ")
            if code not in ("0", "1", "2"):
                problems.append(f"{file.name} line {number}: {line!r}")
            elif code != "0":
                path = f"{label}/{name.strip()}"
                rows.append(
                    Row(_id_of(path), path, label.replace("_", " "), "train" if code == "1" else "val")
                )
    raise_all(problems, request.source, "lines are NAME.avi and 0, 1 or 2")
    return rows


def _ucf101(request: Request) -> list[Row]:
    """Folder with trainlist0N.txt and testlist0N.txt, lines `CLASS/NAME.avi [number]`."""
    rows, problems = [], []
    for name, split in (
        (f"trainlist{request.fold:02d}.txt", "train"),
        (f"testlist{request.fold:02d}.txt", "val"),
    ):
        for number, line in _lines(request.source / name):
            path = line.split()[0]
            label, slash, _ = path.partition("/")
            if slash:
                rows.append(Row(_id_of(path), path, label, split))
            else:
                problems.append(f"{name} line {number}: {line!r}")
    raise_all(problems, request.source, "lines are CLASS/NAME.avi")
    return rows


def _list(request: Request) -> list[Row]:
    """Lines `PATH LABEL` or `PATH N_FRAMES LABEL`, by blanks or commas (VideoMAE, TC-CLIP).

    Labels are numbers of the lines of `classes`: CSV id,name in the order of the file, a JSON object or
    list, or one name per line. Without it the numbers are the labels.
    """
    names = None if request.classes is None else _class_names(request.classes)
    rows, problems = [], []
    for number, line in _lines(request.source):
        fields = re.split(r"[,\s]+", line)
        path, label = fields[0], fields[-1]
        if len(fields) < 2 or not label.isdigit():
            problems.append(f"line {number}: {line!r} is no path and number")
        elif names is not None and int(label) >= len(names):
            problems.append(f"line {number}: unknown label {label}, there are {len(names)} classes")
        else:
            rows.append(Row(_id_of(path), path, names[int(label)] if names else label, request.split))
    raise_all(problems, request.source, "lines are PATH LABEL; --classes names the classes")
    return rows


def _folders(request: Request) -> list[Row]:
    """SPLIT/CLASS/video below the source when there is a folder of that split, else CLASS/video."""
    base = request.source / request.split if (request.source / request.split).is_dir() else request.source
    rows = []
    for folder in sorted(path for path in base.iterdir() if path.is_dir()):
        for path in _videos_below(folder):
            place = path.relative_to(request.root).as_posix()
            rows.append(Row(_id_of(place), place, folder.name, request.split))
    return rows


IMPORTERS: dict[str, Callable[[Request], list[Row]]] = {
    "kinetics": _kinetics,
    "ssv2": _ssv2,
    "hmdb51": _hmdb51,
    "ucf101": _ucf101,
    "list": _list,
    "folders": _folders,
}


def _class_names(path: Path) -> list[str]:
    """Position is the class's number; ids in the file are not used for sorting."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        data: Any = json.loads(text)
        return [str(name) for name in (data.values() if isinstance(data, dict) else data)]
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if rows and rows[0] == ["id", "name"]:
        return [row[1] for row in rows[1:]]
    return [line.strip() for line in text.splitlines() if line.strip()]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _id_of(path: str) -> str:
    return path.rpartition(".")[0] if path.lower().endswith(VIDEO_SUFFIXES) else path


def _files_by_stem(root: Path) -> dict[str, str]:
    """Stem -> path below the root, of every video file: published layouts differ, names do not."""
    return {path.stem: path.relative_to(root).as_posix() for path in _videos_below(root)}


def _videos_below(folder: Path) -> Iterable[Path]:
    """Video files, and folders that hold images, sorted."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.iterdir()):
                yield path
            else:
                yield from _videos_below(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            yield path
