"""`toy:SEED`: a tiny random video encoder, for tests and dry runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from . import Options
from .base import ClipEncoder, ClipSpec, TorchEncoder


class _Toy(nn.Module):
    """Patch means over time halves, one hidden layer: sees what is where, and roughly when."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d((2, 4, 4))
        self.hidden = nn.Linear(3 * 2 * 4 * 4, feature_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.hidden(self.pool(pixels).flatten(1)))


def load(name: str, options: Options) -> ClipEncoder:
    """Builds it from the seed `name`; options: frames (4), size (32), dim (16), classes (5)."""
    if not name.isdigit():
        raise ConfigError(f"toy:{name} is no seed", where="extract.encoder", fix="for example toy:0")
    size, dim = options.integer("size", 32), options.integer("dim", 16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(name))
        model, head = _Toy(dim), nn.Linear(dim, options.integer("classes", 5))
    return TorchEncoder(
        family="toy",
        model=model,
        head=head,
        spec=ClipSpec(options.integer("frames", 4), size, size),
        feature_dim=dim,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        layout="BCTHW",
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
    )
