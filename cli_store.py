"""`dejavid store ...`: looks at, checks, mends and copies stores. Parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import StoreCorruptError

if TYPE_CHECKING:
    from .store import VerifyReport

app = typer.Typer(help="Look at, check, mend and copy TSE stores.", no_args_is_help=True)

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")]
Into = Annotated[Path, typer.Argument(metavar="INTO", help="Where the result goes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Manifest = Annotated[Path | None, typer.Option("--manifest", help="CSV or Parquet with labels and splits.")]


class Format(StrEnum):
    zarr = "zarr"
    hdf5 = "hdf5"


class Dtype(StrEnum):
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


class Layout(StrEnum):
    official = "official"
    npy = "npy"
    hdf5 = "hdf5"
    parquet = "parquet"
    zarr = "zarr"


LayoutOption = Annotated[Layout, typer.Option(help="Layout of the plain files.")]


@app.command()
def info(store: StorePath, as_json: AsJson = False) -> None:
    """What the store holds and what it was made from."""
    from .store import info as read_info

    found = read_info(store)
    if as_json:
        _echo_json(asdict(found) | {"fingerprint": found.header.fingerprint})
        return
    header = found.header
    typer.echo(
        f"{found.path}: {found.n_videos} videos, {found.n_rows} steps x {header.feature_dim} {header.dtype}"
    )
    typer.echo(
        f"{found.n_parts} {header.format} parts, {_size(found.n_bytes)}, {found.n_duplicates} duplicates"
    )
    typer.echo(f"fingerprint {header.fingerprint}")
    for key, value in sorted(header.facts.items()):
        typer.echo(f"  {key}: {json.dumps(value)}")


@app.command()
def status(
    store: StorePath,
    manifest: Annotated[Path, typer.Option("--manifest", help="The list of videos to compare with.")],
    as_json: AsJson = False,
) -> None:
    """How far extraction has come: done, failed and missing videos of every split."""
    from .store import status as read_status

    found = read_status(store, manifest)
    if as_json:
        _echo_json(asdict(found))
        return
    for name, split in found.splits.items():
        typer.echo(
            f"{name or '(no split)'}: {split.n_done} of {split.n_videos} done,"
            f" {split.n_failed} failed, {split.n_missing} missing"
        )
    for video_id, cause in found.failed.items():
        typer.echo(f"failed {video_id}: {cause}")
    for copy in found.duplicates:
        same = "identical" if copy.identical else "NOT identical"
        typer.echo(f"committed {len(copy.parts)} times, {same}: {copy.video_id}")
    notes = (
        (found.unlisted, "videos not in the manifest"),
        (len(found.quarantined), "parts set aside as damaged"),
    )
    for count, what in (*notes, (len(found.leftovers), "parts being written, or left by killed writers")):
        if count:
            typer.echo(f"{count} {what}")


@app.command()
def verify(store: StorePath, as_json: AsJson = False) -> None:
    """Recomputes every checksum; names each damaged part and video (exit code 5)."""
    from .store import verify as verify_store

    found = verify_store(store)
    if as_json:
        _echo_json(asdict(found))
    else:
        typer.echo(f"read {found.n_parts} parts, {found.n_videos} videos, {_size(found.n_bytes)}")
        _echo_damage(found)
    if found.damaged:
        n_videos = len({video for part in found.damaged for video in part.videos})
        raise StoreCorruptError(
            f"{len(found.damaged)} parts are damaged, {n_videos} videos in them",
            where=str(store),
            fix=f"dejavid store repair {store}, then dejavid extract makes these videos again",
        )


@app.command()
def repair(store: StorePath) -> None:
    """Sets damaged parts aside, so that `extract` makes their videos again, and clears up after kills."""
    from .store import repair as repair_store

    found = repair_store(store)
    _echo_damage(found.verified)
    for part, place in found.quarantined.items():
        typer.echo(f"set aside {part}: {place}")
    for name in found.removed:
        typer.echo(f"removed {name}")
    typer.echo(f"{len(found.lost)} videos have to be extracted again" if found.lost else "the store is whole")


@app.command()
def compact(store: StorePath) -> None:
    """Turns many small parts into few large ones; nothing is lost at any moment."""
    from .store import compact as compact_store

    found = compact_store(store)
    dropped = f"; {found.n_dropped} copies of videos dropped" if found.n_dropped else ""
    typer.echo(f"{found.n_parts_before} parts -> {found.n_parts_after}, {found.n_videos} videos{dropped}")


@app.command()
def merge(
    into: Annotated[
        Path, typer.Argument(metavar="INTO", help="The store that receives; made if there is none.")
    ],
    sources: Annotated[
        list[Path], typer.Argument(metavar="STORE...", help="Stores of the same fingerprint.")
    ],
) -> None:
    """Copies stores that were made from the same facts into one."""
    from .store import merge as merge_stores

    found = merge_stores(sources, into)
    there = f" ({found.n_parts_present} were there)" if found.n_parts_present else ""
    typer.echo(f"{into}: {found.n_videos} videos; copied {found.n_parts_copied} parts{there}")


@app.command()
def convert(
    store: StorePath,
    into: Into,
    format: Annotated[Format | None, typer.Option(help="What its parts are; default: as they are.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the features; default: as they are.")] = None,
) -> None:
    """Copies a store into a new one of another format or dtype."""
    from .store import convert as convert_store

    found = convert_store(store, into, format=format, dtype=dtype)
    typer.echo(f"{into}: {found.n_videos} videos{_present(found.n_present)}")


@app.command("export")
def export(store: StorePath, into: Into, layout: LayoutOption, manifest: Manifest = None) -> None:
    """Writes a store as plain files: npy folder, HDF5, Parquet, Zarr, or the reference's pickles."""
    from .store import export_features

    found = export_features(store, into, layout=layout, labels=manifest)
    typer.echo(f"{into}: {found.n_videos} videos")
    if found.dropped_extras:
        typer.echo(f"left out, there is no place for them: {', '.join(found.dropped_extras)}")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder or file to read.")],
    into: Into,
    layout: LayoutOption,
    dtype: Annotated[Dtype, typer.Option(help="Type of the features.")] = Dtype.float32,
    format: Annotated[Format, typer.Option(help="What the parts are.")] = Format.zarr,
) -> None:
    """Makes a store from plain files; keeps ids, labels and splits."""
    from .store import import_features

    found = import_features(source, into, layout=layout, dtype=dtype, format=format)
    typer.echo(f"{into}: {found.n_videos} videos{_present(found.n_present)}")
    typer.echo(f"labels and splits: {found.manifest or 'the source has none'}")


def _echo_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, default=str))


def _echo_damage(report: VerifyReport) -> None:
    for part in report.damaged:
        typer.echo(f"damaged part {part.part}: {'; '.join(part.problems)}")
        for video in part.videos:
            typer.echo(f"  video {video}")
    for name in report.strange:
        typer.echo(f"not listed by any commit: {name}")


def _present(count: int) -> str:
    return f" ({count} were there)" if count else ""


def _size(n_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
