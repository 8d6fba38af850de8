"""`dejavid evaluate --zero-shot`: models that know classes by name. Parse, call, print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import ConfigError

if TYPE_CHECKING:
    from .config import Config
    from .evaluate.zero_shot import TestSet

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--zero-shot",
        metavar="tcclip:FOLDER",
        help="Score this model, which knows classes by name, in the place of a head. Repeatable.",
    ),
]
Classes = Annotated[
    list[Path] | None,
    typer.Option("--classes", help="With --zero-shot: CSV (id,name) or JSON; one, or one for each --on."),
]
On = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MANIFEST[@SPLIT]", help="With --zero-shot: videos to score; default: those of the run."
    ),
]
NovelClasses = Annotated[
    list[Path] | None,
    typer.Option("--novel-classes", help="With --zero-shot: also score these, for base-to-novel."),
]
NovelOn = Annotated[
    list[str] | None, typer.Option("--novel-on", metavar="MANIFEST[@SPLIT]", help="Videos of these.")
]
Clips = Annotated[int, typer.Option(min=1, help="With --zero-shot: clips of frames per video.")]
ThreeCrops = Annotated[
    bool, typer.Option("--three-crops", help="With --zero-shot: three crops of every clip, not one.")
]
ViewSeed = Annotated[
    int | None,
    typer.Option(min=0, help="With --zero-shot: draw frames at random, as published; default: evenly."),
]


def evaluate_zero_shot(
    config: Config,
    models: Sequence[str],
    *,
    classes: Sequence[Path],
    on: Sequence[str],
    novel_classes: Sequence[Path],
    novel_on: Sequence[str],
    clips: int,
    three_crops: bool,
    seed: int | None,
    progress: bool,
) -> None:
    """Scores, prints the table, and writes <run.dir>/zero_shot.json."""
    from rich.console import Console
    from rich.table import Table

    from .evaluate.zero_shot import Views, table, write_zero_shot, zero_shot

    result = zero_shot(
        models,
        _test_sets(config, classes, on, "--classes"),
        _test_sets(config, novel_classes, novel_on, "--novel-classes") if novel_classes or novel_on else (),
        views=Views(clips, "three" if three_crops else "center", seed),
        section=config.extract,
        missing=config.evaluate.missing,
        progress=progress,
    )
    header, *rows = table(result)
    shown = Table(*header, box=None, header_style="bold")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
    for part in (*result.base, *result.novel):
        for video_id, cause in part.failures.items():
            typer.echo(f"failed {video_id}: {cause}")
    path = config.run.dir / "zero_shot.json"
    write_zero_shot(result, path)
    typer.echo(str(path))


def _test_sets(config: Config, classes: Sequence[Path], on: Sequence[str], option: str) -> list[TestSet]:
    from .evaluate.zero_shot import TestSet

    split = config.evaluate.split
    places = [(config.manifest.path, split, config.manifest.root)]
    if on:
        parts = [item.rpartition("@") if "@" in item else (item, "@", split) for item in on]
        places = [(Path(manifest), name, None) for manifest, _, name in parts]
    if len(classes) not in (1, len(places)):
        raise ConfigError(
            f"{len(classes)} files of classes for {len(places)} lists of videos",
            where=option,
            fix=f"give {option} once, or once for each list of videos",
        )
    files = list(classes) * (len(places) if len(classes) == 1 else 1)
    return [
        TestSet(manifest, name, labels, root)
        for (manifest, name, root), labels in zip(places, files, strict=True)
    ]
