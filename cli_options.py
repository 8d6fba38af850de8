"""What the commands share: the configuration's arguments, and how a report is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import ConfigError

if TYPE_CHECKING:
    from .config import Config
    from .stages import StageReport

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


def load(config_file: Path | None, overrides: list[str] | None) -> Config:
    """The named file, or ./pipeline.yaml, with the overrides."""
    from .config import load_config

    if config_file is None and not Path("pipeline.yaml").exists():
        raise ConfigError(
            "there is no pipeline.yaml here",
            where=str(Path.cwd()),
            fix="name one, or write one: dejavid config show > pipeline.yaml",
        )
    return load_config(config_file or Path("pipeline.yaml"), overrides or ())


def load_any(config_file: Path | None, overrides: list[str] | None) -> Config:
    """As `load`, but where no file is named or there, the defaults."""
    from .config import load_config

    if config_file is None and Path("pipeline.yaml").exists():
        config_file = Path("pipeline.yaml")
    return load_config(config_file, overrides or ())


def echo(report: StageReport) -> None:
    """One line for a finished stage."""
    typer.echo(f"{report.name}: {report.summary}")
