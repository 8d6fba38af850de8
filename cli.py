"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import cli_store
from .errors import ConfigError, DejaVidError, PartialResultError

if TYPE_CHECKING:
    from .config import Config
    from .pipeline import StageReport

SHOWN = 20  # lines of a list that are printed; the rest is counted

app = typer.Typer(
    help="Videos as temporal sequences of embeddings, classified by learned, weighted, diagonal-free DTW.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Show or check the configuration.", no_args_is_help=True)
manifest_app = typer.Typer(help="Check the list of videos, or import a dataset's.", no_args_is_help=True)
encoder_app = typer.Typer(help="List the encoders, check one.", no_args_is_help=True)
app.add_typer(manifest_app, name="manifest")
app.add_typer(cli_store.app, name="store")
app.add_typer(encoder_app, name="encoder")
app.add_typer(config_app, name="config")

ConfigFile = Annotated[
    Path | None,
    typer.Argument(metavar="[PIPELINE.YAML]", help="Configuration; without it ./pipeline.yaml is read."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Sets one key, for example --set extract.hop=8. Repeatable.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    global _debug
    _debug = debug


_debug = False


@app.command()
def run(config_file: ConfigFile = None, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """All stages: manifest, extract, centroids, train, evaluate, report. Finished ones are skipped."""
    from .pipeline import run_pipeline

    _print_results(run_pipeline(_load(config_file, overrides), progress=not quiet, say=typer.echo))


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
    quiet: Quiet = False,
) -> None:
    """Stage one: videos -> TSEs in the store. Resumes where it stopped."""
    from .pipeline import extract_stage

    _echo(
        extract_stage(
            _load(config_file, overrides), shard=shard, retry_failed=retry_failed, progress=not quiet
        )
    )


@app.command()
def train(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
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
    """Stage two: DBA centroids (cached), then the head, from the store alone."""
    from .pipeline import grid_stage, head_stages
    from .train.presets import PARITY

    config = _load(config_file, [*(PARITY if parity else ()), *(overrides or ())])
    if grid:
        _echo(grid_stage(config, grid, progress=not quiet))
        return
    for report in head_stages(config, resume=resume, progress=not quiet):
        _echo(report)


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
    quiet: Quiet = False,
) -> None:
    """Scores the head and the baselines on the same videos; prints a table and writes it to files."""
    from .pipeline import evaluate_stage

    changes = list(overrides or ())
    if baselines is not None:
        changes.append(f"evaluate.baselines=[{baselines}]")
    if ablation:
        changes.append("evaluate.ablation=true")
    _print_results([evaluate_stage(_load(config_file, changes), progress=not quiet)])


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

    made = report_stage(_load(config_file, overrides), videos=videos or (), progress=not quiet)
    _echo(made)
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

    config = _load(Path(__file__).with_name("pipeline.yaml"), overrides)
    made = make_demo_videos(config.manifest.path, clips=clips, seed=config.run.seed, progress=not quiet)
    where = config.manifest.path.parent
    typer.echo(f"videos: {'written to' if made else 'skipped, they are there already:'} {where}")
    _print_results(run_pipeline(config, progress=not quiet, say=typer.echo))


@app.command()
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

    _echo(manifest_stage(_load(config_file, overrides)))


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


@config_app.command("show")
def config_show(config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Prints the configuration (without any file: the defaults) as YAML, every key with its meaning."""
    from .config import describe_yaml, load_config

    if config_file is None and Path("pipeline.yaml").exists():
        config_file = Path("pipeline.yaml")
    typer.echo(describe_yaml(load_config(config_file, overrides or ())), nl=False)


@config_app.command("check")
def config_check(config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Checks the configuration without running anything."""
    _load(config_file, overrides)
    typer.echo("the configuration is right")


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


def _load(config_file: Path | None, overrides: list[str] | None) -> Config:
    from .config import load_config

    if config_file is None and not Path("pipeline.yaml").exists():
        raise ConfigError(
            "there is no pipeline.yaml here",
            where=str(Path.cwd()),
            fix="name one, or write one: dejavid config show > pipeline.yaml",
        )
    return load_config(config_file or Path("pipeline.yaml"), overrides or ())


def _echo(report: StageReport) -> None:
    typer.echo(f"{report.name}: {report.summary}")


def _print_results(reports: list[StageReport]) -> None:
    """The table of the evaluation, and where everything is."""
    from rich.console import Console
    from rich.table import Table

    methods: dict[str, Any] = next(r.data["methods"] for r in reports if r.name == "evaluate")
    table = Table("method", "top-1", "top-5", "scored / split", box=None, header_style="bold")
    for name, row in methods.items():
        counts = f"{row['n_scored']} / {row['n_split']}"
        table.add_row(name, f"{100 * row['top1']:.1f} %", f"{100 * row['top5']:.1f} %", counts)
    Console().print(table)
    for report in reports:
        for path in report.paths:
            typer.echo(f"{report.name + ':':<11}{path}")
