"""What a head makes of TSE steps before comparing them: chosen, standardised features and the step's time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError

_ROWS_AT_ONCE = 65_536


class InputLayer(nn.Module):
    """Maps TSE steps (S, F) to the steps (S, F') that centroids are compared with.

    Columns `first:stop` are kept, shifted and scaled feature by feature, and a feature for the relative time
    of the step, from -position/2 at the first to +position/2 at the last, is added. That feature makes a path
    pay for aligning early with late steps; with a weight per class and centroid step, the head learns how
    much.

    Attributes:
        mean, scale: (stop - first,) buffers; None where features are not standardised.
        columns: (first, stop) in the steps given.
        n_features_in: F.
        n_features: F'.
        position: range of the relative time; 0: no such feature.
    """

    mean: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        n_features_in: int,
        *,
        columns: tuple[int, int] | None = None,
        mean: Tensor | None = None,
        scale: Tensor | None = None,
        position: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_features_in = n_features_in
        self.columns = columns or (0, n_features_in)
        self.position = position
        self.n_features = self.columns[1] - self.columns[0] + (position > 0)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
        """The steps (S, F') of packed TSEs; `values` itself where there is nothing to do.

        Args:
            values: (S, F).
            offsets: (N + 1,) on any device.
        """
        if values.ndim != 2 or values.shape[1] != self.n_features_in:
            raise ConfigError(
                f"the TSEs have {values.shape[-1]} features, the head was made for {self.n_features_in}",
                where="DejaVidHead",
                fix="use TSEs of the encoder and row layout that the head was trained on",
            )
        first, stop = self.columns
        chosen = values[:, first:stop]
        if self.mean is None and self.position == 0:
            return chosen.contiguous()  # as the kernels ask; no copy where all columns are kept
        result = torch.empty(len(values), self.n_features, device=values.device)
        features = result[:, : stop - first]
        if self.mean is None or self.scale is None:
            features.copy_(chosen)
        else:
            torch.sub(chosen, self.mean, out=features)
            features.div_(self.scale)
        if self.position > 0:
            result[:, -1] = (relative_time(offsets).to(values.device) - 0.5) * self.position
        return result

    @classmethod
    def from_card(cls, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> InputLayer:
        """The layer that `card` and the buffers, under their names with the prefix "inputs.", describe."""
        first, stop = card["columns"]
        return cls(
            card["n_features"],
            columns=(first, stop),
            mean=tensors.get("inputs.mean"),
            scale=tensors.get("inputs.scale"),
            position=card["position"],
        )

    def card(self) -> dict[str, Any]:
        """Everything but the buffers, as JSON types."""
        return {"n_features": self.n_features_in, "columns": list(self.columns), "position": self.position}


def fit_inputs(
    values: Tensor,
    offsets: Tensor,
    *,
    features: str = "all",
    standardise: bool = False,
    position: float = 0.0,
) -> InputLayer:
    """The input layer for some training TSEs.

    Args:
        values: (S, F), of any floating type.
        offsets: (N + 1,).
        features: "all", or "FROM:TO" to keep these columns.
        standardise: shift and scale every feature to mean 0 and standard deviation 1 over all steps. A
            constant feature is divided by the largest deviation.
        position: standard deviation of the relative time, as a share of those of all kept features together;
            0: none.
    """
    n_features = values.shape[1]
    columns = _columns(features, n_features)
    if not standardise and position == 0:
        return InputLayer(n_features, columns=columns)
    mean, deviation = _moments(values[:, slice(*columns)])
    largest = float(deviation.max()) or 1.0
    scale = torch.where(deviation > 1e-6 * largest, deviation, largest)
    total = float((deviation / scale).sum() if standardise else deviation.sum())
    spread = float(relative_time(offsets).std(correction=0))
    return InputLayer(
        n_features,
        columns=columns,
        mean=mean.float() if standardise else None,
        scale=scale.float() if standardise else None,
        # TSEs of one step only, or constant ones: any range will do, and the feature has to stay.
        position=position * (total / spread if total > 0 and spread > 0 else 1.0),
    )


def relative_time(offsets: Tensor) -> Tensor:
    """(S,) place of every step in its TSE: 0 at the first, 1 at the last, 0.5 in a TSE of one step."""
    bounds = torch.as_tensor(offsets).to("cpu")
    lengths = bounds.diff()
    step = torch.arange(int(bounds[-1])) - bounds[:-1].repeat_interleave(lengths)
    last = (lengths - 1).repeat_interleave(lengths)
    return torch.where(last > 0, step / last.clamp(min=1), 0.5)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column, float64, without a float64 copy of all values."""

    def chunks() -> Iterator[Tensor]:
        return (values[i : i + _ROWS_AT_ONCE].double() for i in range(0, len(values), _ROWS_AT_ONCE))

    mean = torch.stack([chunk.sum(0) for chunk in chunks()]).sum(0) / len(values)
    variance = torch.stack([(chunk - mean).square().sum(0) for chunk in chunks()]).sum(0) / len(values)
    return mean, variance.sqrt()


def _columns(features: str, n_features: int) -> tuple[int, int]:
    if features == "all":
        return 0, n_features
    first, colon, stop = features.partition(":")
    numbers = all(part.strip().isdigit() for part in (first, stop))
    if not (colon and numbers and int(first) < int(stop) <= n_features):
        raise ConfigError(
            f"features={features!r} names no columns of {n_features}",
            where="centroids.features",
            fix="use all, or FROM:TO such as 0:1408",
        )
    return int(first), int(stop)
