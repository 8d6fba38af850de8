"""Frozen encoders by URI: `FAMILY:NAME_OR_PATH?option=value&...`.

Third parties add families with an entry point of the group `dejavid.encoders` that names a function with the
signature of `Loader`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal
from urllib.parse import parse_qsl

import torch

from ...devices import device_of
from ...errors import ConfigError
from .base import ClipEncoder, ClipSpec, Encoded, TorchEncoder

__all__ = ["ClipEncoder", "ClipSpec", "Encoded", "Options", "TorchEncoder", "families", "load_encoder"]

Precision = Literal["auto", "float32", "bfloat16", "float16"]

# family -> loader below this package
_BUILT_IN = {
    "videomae2": ".videomae2:load",
    "tcclip": ".tcclip.encoder:load",
    "hf": ".hf:load_video",
    "hf-image": ".hf:load_image",
    "timm": ".timm:load",
    "openclip": ".openclip:load",
    "torchvision": ".torchvision:load",
    "demo": ".demo:load",
    "toy": ".toy:load",
}


@dataclass(frozen=True)
class Options:
    """How to build an encoder: where it runs, in what precision, and the options of its URI."""

    device: torch.device
    dtype: torch.dtype
    compile: bool
    uri: Mapping[str, str]

    def integer(self, name: str, default: int) -> int:
        """The URI's option `name` as a positive whole number."""
        text = self.uri.get(name, str(default))
        if not text.isdigit() or int(text) < 1:
            raise ConfigError(
                f"option {name}={text!r} is no positive whole number",
                where="extract.encoder",
                fix=f"for example ?{name}={default}",
            )
        return int(text)


Loader = Callable[[str, Options], ClipEncoder]


def families() -> dict[str, str]:
    """family -> where its loader is; plug-ins cannot replace a built-in family."""
    plugins = {entry.name: entry.value for entry in entry_points(group="dejavid.encoders")}
    return plugins | {name: f"{__name__}{place}" for name, place in _BUILT_IN.items()}


def load_encoder(
    uri: str, *, device: str = "auto", precision: Precision = "auto", compile: bool = False
) -> ClipEncoder:
    """Builds the frozen encoder that `uri` names.

    Args:
        uri: for example `toy:0`, `demo:efficientnet-lite0?size=128`.
        device: "auto" takes the first CUDA device, else the CPU.
        precision: of the arithmetic; "auto" is bfloat16 on a GPU, float32 on a CPU.
        compile: torch.compile the model.

    Raises:
        ConfigError: the family, the name or an option is unknown, or the weights do not fit.
        MissingDependencyError: the family needs a package that is not installed; names the extra.
    """
    family, colon, rest = uri.partition(":")
    known = families()
    if not colon or family not in known:
        raise ConfigError(
            f"no encoder family {family!r}" if colon else f"{uri!r} is no encoder URI",
            where="extract.encoder",
            fix=f"FAMILY:NAME with one of {', '.join(sorted(known))}",
        )
    name, _, query = rest.partition("?")
    options = Options(device_of(device, "extract.device"), torch.float32, compile, dict(parse_qsl(query)))
    if precision == "auto":
        precision = "bfloat16" if options.device.type == "cuda" else "float32"
    options = Options(options.device, getattr(torch, precision), compile, options.uri)
    module, _, attribute = known[family].partition(":")
    loader: Loader = getattr(importlib.import_module(module), attribute)
    return loader(name, options)
