"""How the videos of a head were encoded: what `dejavid predict` has to do to a new one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config import Config, ManifestSection, RunSection, StoreSection, load_config, parse_config
from ..errors import ConfigError

EXTRACT_FILE = "extract.json"


@dataclass(frozen=True)
class HeadRecipe:
    """How the store that a head was trained on was made; written beside the head.

    Attributes:
        extract: the section of the configuration.
        facts: what the store's fingerprint covers.
        feature_dim, dtype: of the store.
    """

    extract: dict[str, Any]
    facts: dict[str, Any]
    feature_dim: int
    dtype: Literal["float16", "bfloat16", "float32"]

    def config(self, overrides: Sequence[str], folder: Path, manifest: Path) -> Config:
        """The same extraction of another manifest into another folder; failed videos end nothing.

        Args:
            overrides: `extract.key=value`.
            folder: of the run.
            manifest: whose paths start at the root of the file system.

        Raises:
            ConfigError: an override concerns another section.
        """
        foreign = [item for item in overrides if not item.startswith("extract.")]
        if foreign:
            raise ConfigError(
                f"{foreign[0]!r} does not concern the encoding of videos",
                where="--set",
                fix="set keys of the section extract only",
            )
        given = load_config(None, overrides).extract.model_dump(mode="json")
        named = {item.partition("=")[0].strip().removeprefix("extract.") for item in overrides}
        changed = {name: value for name, value in given.items() if name in named}
        config = parse_config({"extract": {**self.extract, **changed}}, EXTRACT_FILE)
        return config.model_copy(
            update={
                "run": RunSection(dir=folder),
                "manifest": ManifestSection(path=manifest, root=Path("/")),
                "store": StoreSection(dtype=self.dtype),
                "extract": config.extract.model_copy(update={"max_failed": float("inf")}),
            }
        )


def read_recipe(head_dir: Path) -> HeadRecipe:
    """Reads the recipe of a head.

    Raises:
        ConfigError: it has none, or was trained on imported features.
    """
    path = Path(head_dir) / EXTRACT_FILE
    try:
        recipe = HeadRecipe(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the head does not say how to encode a video ({error})",
            where=str(path),
            fix="use a head that dejavid train made from videos, or predict from a store of TSEs",
        ) from None
    if "windowing" not in recipe.facts:
        raise ConfigError(
            "the head was trained on imported features: no encoder is known that makes them",
            where=str(path),
            fix="import the features of the new videos as well, and predict from that store",
        )
    return recipe
