"""Commands about what goes into a run: manifest, encoder, configuration, this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import ConfigFile, Overrides, Quiet, echo, load, load_any
from .errors import ConfigError

SHOWN = 20  # lines of a list that are printed; the rest is counted

manifest_app = typer.Typer(help="Check the list of videos, or import a dataset's.", no_args_is_help=True)
encoder_app = typer.Typer(help="List the encoders, check one, convert one.", no_args_is_help=True)
config_app = typer.Typer(help="Show or check the configuration.", no_args_is_help=True)


def doctor() -> None:
    """What this machine has, and what each missing part would give."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from .doctor import examine, kernel_backends

    table = Table("part", "found", "is for", "to install it", box=None, header_style="bold")
    for part in examine():
        mark = "[green]yes[/]" if part.found else "[yellow]no[/]"
        install = "" if part.found else part.install
        table.add_row(part.name, f"{mark} {escape(part.found or '')}", part.gives, escape(install))
    for name, reason in kernel_backends().items():
        table.add_row(f"kernels: {name}", escape(reason), "train.backend", "")
    Console().print(table)


@manifest_app.command("check")
def manifest_check(config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Lists everything that is wrong with the manifest; opens no video."""
    from .pipeline import manifest_stage

    echo(manifest_stage(load(config_file, overrides)))


@manifest_app.command("import")
def manifest_import(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="kinetics, ssv2, hmdb51, ucf101, list, ...")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Annotation file or folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Manifest to write, CSV or Parquet.")],
    root: Annotated[Path, typer.Option(help="Folder of the videos.")],
    split: Annotated[str, typer.Option(help="Split of the rows, for files that do not tell it.")] = "train",
    fold: Annotated[int, typer.Option(help="Which of the published splits.")] = 1,
    classes: Annotated[Path | None, typer.Option(help="File that names numbered classes.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add to a manifest that is there.")] = False,
) -> None:
    """Turns a dataset's annotation files into a manifest; says which videos are not there."""
    from .extract import import_annotations, read_manifest, write_manifest

    if out.exists() and not append:
        raise ConfigError("there is a file already", where=str(out), fix="--append, or choose another name")
    before = read_manifest(out, root, check_files=False).rows if out.exists() else ()
    imported = import_annotations(kind, source, root=root, split=split, fold=fold, classes=classes)
    write_manifest(out, (*before, *imported.rows))
    typer.echo(f"{out}: {len(imported.rows)} videos, {len(imported.missing)} of the annotations have no file")
    for video_id in imported.missing[:SHOWN]:
        typer.echo(f"  no file for {video_id}")
    if len(imported.missing) > SHOWN:
        typer.echo(f"  and {len(imported.missing) - SHOWN} more")


@encoder_app.command("list")
def encoder_list() -> None:
    """The encoder families, built in and from plug-ins."""
    from .extract.encoders import families

    for family, home in sorted(families().items()):
        typer.echo(f"{family + ':':<14}{home}")


@encoder_app.command("check")
def encoder_check(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Class names, one per line in the order of the outputs: also scores the manifest."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Digest, shapes and throughput of the encoder; with --classes its own top-1 on a labelled manifest."""
    from .extract.check import check_encoder

    found = check_encoder(load_any(config_file, overrides), classes=classes, progress=not quiet)
    shape = "x".join(str(found.input[key]) for key in ("frames", "height", "width"))
    typer.echo(f"{found.id}: {found.n_parameters:,} parameters, digest {found.digest or 'unknown'}")
    typer.echo(f"{shape} frames in, {found.feature_dim} features and {found.num_classes} classes out")
    typer.echo(
        f"{found.clips_per_s:.1f} clips/s in batches of {found.batch_size} on {found.device},"
        f" peak memory {found.peak_bytes / 2**30:.2f} GiB"
    )
    if found.top1 is not None:
        typer.echo(
            f"top-1 {100 * found.top1:.1f} % of {found.n_split} videos, {found.n_scored} of them scored"
        )


@encoder_app.command("convert")
def encoder_convert(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made; then an encoder, tcclip:FOLDER.")],
    base: Annotated[
        str, typer.Option(help="CLIP in transformers' layout: a folder, or a hub repository.")
    ] = "openai/clip-vit-base-patch16",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="TC-CLIP or ViFi-CLIP, published or trained here; without one CLIP alone."),
    ] = None,
    ensemble: Annotated[
        float, typer.Option(help="Share of the checkpoint in the mean with CLIP's weights; 0.7 as published.")
    ] = 1.0,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Of the model; over the checkpoint's own."),
    ] = None,
) -> None:
    """Turns a TC-CLIP checkpoint, or CLIP alone, into a folder for tcclip:FOLDER."""
    from .config import parse_assignments
    from .extract.encoders.tcclip.convert import convert

    changes = parse_assignments(options or (), "--option")
    done = convert(checkpoint, base, out, changes=changes, ensemble=ensemble)
    typer.echo(f"{done.path}: {done.options.method}, {done.n_parameters:,} parameters")


@encoder_app.command("context")
def encoder_context(
    model: Annotated[str, typer.Argument(metavar="tcclip:FOLDER")],
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="File, or folder of images.")],
    out: Annotated[Path, typer.Argument(metavar="PICTURE.PNG", help="Where the picture goes.")],
) -> None:
    """Draws which patches of a video TC-CLIP sums up, each in the colour of its context token."""
    from .extract.encoders.tcclip.pictures import write_sheet

    write_sheet(model, video, out)
    typer.echo(str(out))


@config_app.command("show")
def config_show(config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Prints the configuration (without any file: the defaults) as YAML, every key with its meaning."""
    from .config import describe_yaml

    typer.echo(describe_yaml(load_any(config_file, overrides)), nl=False)


@config_app.command("check")
def config_check(config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Checks the configuration without running anything."""
    load(config_file, overrides)
    typer.echo("the configuration is right")
