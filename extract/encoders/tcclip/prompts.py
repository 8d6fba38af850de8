"""From label files to class names, and from class names to the tokens of prompts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....errors import ConfigError, ManifestError
from .options import ModelOptions

_SHOWN = 5  # problems printed in full


@dataclass(frozen=True)
class ClassNames:
    """The classes of one data set; their order is the index of a class.

    Attributes:
        names: of the classes; a sentence each, where a language model has rephrased them.
        ids: what the file calls them by, "0", "1" ...
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]


def read_class_names(path: Path) -> ClassNames:
    """Reads a label file: CSV with the columns id and name, or JSON {id: name}. The order is the file's.

    Raises:
        ConfigError: it cannot be read, is neither, names nothing, or names or ids repeat.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _json_rows(text) if path.suffix.lower() == ".json" else _csv_rows(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"no list of classes ({error})",
            where=str(path),
            fix='give a CSV file with the header "id,name", or a JSON file {"0": "name", ...}',
        ) from None
    ids, names = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
    problems = [] if rows else ["it names no class"]
    problems += [f"{value!r} occurs twice" for value in _repeated(ids) + _repeated(names)]
    problems += [f"class {key!r} has no name" for key, name in rows if not name.strip()]
    if problems:
        raise ConfigError(
            "; ".join(problems[:5]), where=str(path), fix="give every class one line of its own"
        )
    return ClassNames(names, ids)


def class_indices(labels: Sequence[str], classes: ClassNames, where: str) -> NDArray[np.int64]:
    """Index of each label among the classes: all labels are names, or all are ids.

    Args:
        labels: N, of videos.
        classes: to choose from.
        where: the labels are from, for the error.

    Raises:
        ManifestError: names labels that are neither.
    """
    for known in (classes.names, classes.ids):
        place = {name: index for index, name in enumerate(known)}
        if all(label in place for label in labels):
            return np.array([place[label] for label in labels], np.int64)
    named = {*classes.names}
    lost = sorted({label for label in labels if label not in named})
    shown = ", ".join(repr(label) for label in lost[:_SHOWN])
    raise ManifestError(
        f"{len(lost)} labels are not among the {len(named)} classes: {shown}",
        where=where,
        fix="label every video with the name, or every video with the id, of a class in the file",
    )


def prompts_of(names: Sequence[str], options: ModelOptions) -> list[str]:
    """The sentence that stands for each class.

    Raises:
        ConfigError: two classes have the same prompt.
    """
    spoken = [re.sub(r"(?=[A-Z])", " ", name).strip() if options.split_capitals else name for name in names]
    if options.method != "vifi_clip":  # whose published prompts keep it
        spoken = [name.replace("_", " ") for name in spoken]
    if options.method == "clip":
        prompts = spoken
    else:
        words = options.template
        if options.method == "tcclip":
            words += " X" * (options.n_prompt_vectors - len(options.template.split()))
        prompts = [f"{words} {name}." for name in spoken]
    if twice := _repeated([" ".join(prompt.lower().split()) for prompt in prompts]):
        raise ConfigError(
            f"several classes have the prompt {twice[0]!r}",
            where="class names",
            fix="give classes names that differ in more than capitals, spaces and underscores",
        )
    return prompts


def tokenise(tokenizer: Any, prompts: Sequence[str], context_length: int) -> Tensor:
    """Token ids (C, context_length) int64, zeros behind the end.

    Args:
        tokenizer: transformers' CLIPTokenizer.
        prompts: C sentences.
        context_length: most tokens, the first and the last included.

    Raises:
        ConfigError: a prompt is longer.
    """
    rows = tokenizer(list(prompts))["input_ids"]
    longest = max(range(len(rows)), key=lambda row: len(rows[row]))
    if len(rows[longest]) > context_length:
        raise ConfigError(
            f"a prompt of {len(rows[longest])} tokens, more than the {context_length} of the model:"
            f" {prompts[longest]!r}",
            where="context_length",
            fix="shorten the class name, or convert the checkpoint with context_length=77",
        )
    tokens = torch.zeros(len(rows), context_length, dtype=torch.long)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens


def template_tokens(tokenizer: Any, options: ModelOptions) -> Tensor:
    """Ids of the words that the prompt vectors of a new model start as: (n_prompt_vectors,)."""
    prompt = prompts_of(["X"], options)[0]
    return torch.tensor(tokenizer(prompt)["input_ids"][1 : 1 + options.n_prompt_vectors])


def _csv_rows(text: str) -> list[tuple[str, str]]:
    # An absent field is None, and so a name that is missing.
    rows = csv.DictReader(io.StringIO(text, newline=""), restval="")
    return [(row["id"].strip(), row["name"].strip()) for row in rows]


def _json_rows(text: str) -> list[tuple[str, str]]:
    # Pairs, because a mapping would forget a key that occurs twice.
    pairs = json.loads(text, object_pairs_hook=list)
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError("not one mapping of ids to names")
    if not all(isinstance(name, str) for _, name in pairs):
        raise ValueError("a name is no text")
    return pairs


def _repeated(values: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
