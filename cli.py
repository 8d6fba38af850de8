"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import cli_setup, cli_store, cli_zero_shot
from .cli_options import ConfigFile, Overrides, Quiet, echo, load, load_any
from .errors import DejaVidError, PartialResultError

if TYPE_CHECKING:
    from .stages import StageReport

app = typer.Typer(
    help="Videos as temporal sequences of embeddings, classified by learned, weighted, diagonal-free DTW.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_setup.manifest_app, name="manifest")
app.add_typer(cli_store.app, name="store")
app.add_typer(cli_setup.encoder_app, name="encoder")
app.add_typer(cli_setup.config_app, name="config")


class Executor(StrEnum):
    here = "here"
    submitit = "submitit"
    ray = "ray"


class Method(StrEnum):
    dejavid = "dejavid"
    tcclip = "tcclip"


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    global _debug
    _debug = debug
    # What the library says once and quietly, such as which kernels it chose and why.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dejavid").setLevel(logging.INFO)


_debug = False


@app.command()
def run(config_file: ConfigFile = None, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """All stages: manifest, extract, centroids, train, evaluate, report. Finished ones are skipped."""
    from .pipeline import run_pipeline

    _print_results(run_pipeline(load(config_file, overrides), progress=not quiet, say=typer.echo))


@app.command()
def extract(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only part I (from 0) of N; read from the scheduler's variables."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try videos in the failures ledger again.")
    ] = False,
    executor: Annotated[
        Executor,
        typer.Option("--executor", "--engine", help="Who runs the shards: this process, Slurm, or Ray."),
    ] = Executor.here,
    shards: Annotated[int, typer.Option(min=1, help="Jobs of submitit, or actors of Ray.")] = 1,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            metavar="NAME=VALUE",
            help="For submitit (slurm_partition=gpu, gpus_per_node=1) or Ray (cpus=2, gpus=1). Repeatable.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Stage one: videos -> TSEs in the store. Resumes where it stopped."""
    from .pipeline import distributed_extract_stage, extract_stage

    config = load(config_file, overrides)
    if executor is Executor.here:
        report = extract_stage(config, shard=shard, retry_failed=retry_failed, progress=not quiet)
    else:
        report = distributed_extract_stage(
            config,
            executor=executor.value,
            shards=shards,
            parameters=parameters or (),
            retry_failed=retry_failed,
            progress=not quiet,
        )
    echo(report)


@app.command()
def train(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    method: Annotated[
        Method,
        typer.Option(help="dejavid: a head on the store. tcclip: the model of tcclip.start, on videos."),
    ] = Method.dejavid,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    parity: Annotated[
        bool,
        typer.Option("--parity", help="Centroids and training as in the published code; --set still wins."),
    ] = False,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION.KEY=V,V",
            help="Train a head per combination of these values; rank them on a held-out part of the split.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Stage two: DBA centroids (cached), then the head, from the store alone; or TC-CLIP, from videos."""
    if method is Method.tcclip:
        if parity or grid:
            raise typer.BadParameter("--parity and --grid are for heads; with --method tcclip use --set")
        from .finetuning import tcclip_stage

        for report in tcclip_stage(load_any(config_file, overrides), resume=resume, progress=not quiet):
            echo(report)
            typer.echo(str(report.paths[0]))
        return
    from .pipeline import grid_stage, head_stages
    from .train.presets import PARITY

    config = load(config_file, [*(PARITY if parity else ()), *(overrides or ())])
    if grid:
        echo(grid_stage(config, grid, progress=not quiet))
        return
    for report in head_stages(config, resume=resume, progress=not quiet):
        echo(report)


@app.command()
def evaluate(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            metavar="all|NAME,...", help="Methods to score beside the head; all that the store allows."
        ),
    ] = None,
    ablation: Annotated[
        bool,
        typer.Option("--ablation", help="Also train heads with a part held fixed, and with the diagonal."),
    ] = False,
    zero_shot: cli_zero_shot.Models = None,
    classes: cli_zero_shot.Classes = None,
    on: cli_zero_shot.On = None,
    novel_classes: cli_zero_shot.NovelClasses = None,
    novel_on: cli_zero_shot.NovelOn = None,
    clips: cli_zero_shot.Clips = 2,
    three_crops: cli_zero_shot.ThreeCrops = False,
    view_seed: cli_zero_shot.ViewSeed = None,
    quiet: Quiet = False,
) -> None:
    """Scores the head and the baselines on the same videos; prints a table and writes it to files."""
    if zero_shot:
        cli_zero_shot.evaluate_zero_shot(
            load_any(config_file, overrides),
            zero_shot,
            classes=classes or (),
            on=on or (),
            novel_classes=novel_classes or (),
            novel_on=novel_on or (),
            clips=clips,
            three_crops=three_crops,
            seed=view_seed,
            progress=not quiet,
        )
        return
    if classes or on or novel_classes or novel_on:
        raise typer.BadParameter("classes and lists of videos need --zero-shot")
    from .pipeline import evaluate_stage

    changes = list(overrides or ())
    if baselines is not None:
        changes.append(f"evaluate.baselines=[{baselines}]")
    if ablation:
        changes.append("evaluate.ablation=true")
    _print_results([evaluate_stage(load(config_file, changes), progress=not quiet)])


@app.command()
def report(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    videos: Annotated[
        list[str] | None, typer.Option("--video", metavar="ID", help="A video to explain. Repeatable.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Writes report.html: the last evaluation as figures, and some videos explained."""
    from .pipeline import report_stage

    made = report_stage(load(config_file, overrides), videos=videos or (), progress=not quiet)
    echo(made)
    typer.echo(str(made.paths[0]))


@app.command()
def predict(
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="Folder of a head, such as runs/demo/head.")],
    videos: Annotated[
        list[str], typer.Argument(metavar="VIDEO...", help="Files, folders, globs; or one store of TSEs.")
    ],
    overrides: Overrides = None,
    top: Annotated[int, typer.Option(min=1, help="Classes per video.")] = 5,
    output: Annotated[
        str, typer.Option("--format", metavar="table|jsonl|csv", help="Of the output.")
    ] = "table",
    explain: Annotated[
        Path | None,
        typer.Option(metavar="PAGE.HTML", help="Also write a page that explains the predictions."),
    ] = None,
    early_abandon: Annotated[
        bool, typer.Option("--early-abandon", help="Only the best class, found sooner; no probability.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Labels videos, or the TSEs of a store, with a trained head."""
    from .evaluate.predict import predict as predict_videos
    from .evaluate.predictions import check_format, to_text

    check_format(output)
    done = predict_videos(
        head,
        videos,
        top=top,
        overrides=overrides or (),
        page=explain,
        early_abandon=early_abandon,
        progress=not quiet,
    )
    typer.echo(to_text(done.predictions, output), nl=False)
    typer.echo(done.summary, err=True)
    if done.n_failed:
        raise typer.Exit(PartialResultError.exit_code)


@app.command()
def export(
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="Folder of a head, such as runs/demo/head.")],
    into: Annotated[Path, typer.Argument(metavar="INTO", help="Folder to make.")],
    steps: Annotated[
        int | None, typer.Option(metavar="T", help="Also a torch.export program for TSEs of T steps.")
    ] = None,
) -> None:
    """Copies a head into a folder of its own, with a model card."""
    from .evaluate.export import export_head

    done = export_head(head, into, n_steps=steps)
    for path in done.paths:
        typer.echo(str(path))
    if steps is not None:
        typer.echo(f"torch.export program: {done.program}")


@app.command()
def demo(
    overrides: Overrides = None,
    clips: Annotated[int, typer.Option(min=2, help="Training clips per class.")] = 20,
    quiet: Quiet = False,
) -> None:
    """The whole pipeline on real footage that only the order of time can classify."""
    from .demo import make_demo_videos
    from .pipeline import run_pipeline

    config = load(Path(__file__).with_name("pipeline.yaml"), overrides)
    made = make_demo_videos(config.manifest.path, clips=clips, seed=config.run.seed, progress=not quiet)
    where = config.manifest.path.parent
    typer.echo(f"videos: {'written to' if made else 'skipped, they are there already:'} {where}")
    _print_results(run_pipeline(config, progress=not quiet, say=typer.echo))


app.command()(cli_setup.doctor)


def main() -> None:
    """Runs the app; an error becomes three lines on stderr and its exit code."""
    # Threads that spin while they wait starve the others as soon as the cores are shared: a small encoder
    # ran 3 times slower. Read when torch is first imported, so it has to be set here.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except DejaVidError as error:
        if _debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted; what was finished is kept", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); Python would complain once more while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if _debug:
            raise
        typer.echo(
            f"error: {type(error).__name__}: {error}\n  where: a fault of DejaVid itself\n"
            "  fix:   run `dejavid --debug ...` and report the traceback",
            err=True,
        )
        sys.exit(1)


def _print_results(reports: list[StageReport]) -> None:
    """The table of the evaluation, and where everything is."""
    from rich.console import Console
    from rich.table import Table

    data = next(report.data for report in reports if report.name == "evaluate")
    columns = ("method", "top-1", "95 % interval", "top-5", "scored / split")
    table = Table(*columns, box=None, header_style="bold")
    for name, row in data["methods"].items():
        low, high = row["top1_interval"]
        table.add_row(
            name,
            f"{100 * row['top1']:.1f} %",
            f"{100 * low:.1f} - {100 * high:.1f}",
            f"{100 * row['top5']:.1f} %",
            f"{row['n_scored']} / {row['n_split']}",
        )
    Console().print(table)
    for name, why in data["skipped"].items():
        typer.echo(f"not applicable: {name} ({why})")
    for report in reports:
        for path in report.paths:
            typer.echo(f"{report.name + ':':<11}{path}")
