"""Why the head called a video what it called it: the alignment, and what each moment and feature adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError
from ..kernels import warping_path

if TYPE_CHECKING:
    from ..store import Store, Tse
    from ..train import DejaVidHead

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

TOP_CLASSES = 5
# Training videos of a class that are searched for the moments nearest to its centroid.
MAX_SEARCHED = 50


@dataclass(frozen=True)
class Alignment:
    """A video along one class.

    Attributes:
        name: of the class.
        distance: weighted DTW distance: the sum of `step_cost`.
        local_cost: (Tc, T) cost of every cell.
        lo, hi: (Tc,) first and last step of the video that each centroid step meets on the path.
        step_cost: (T,) cost on the path by step of the video.
        feature_cost: (F,) cost on the path by feature, behind the head's input layer.
        weights: (Tc, F) of the class.
    """

    name: str
    distance: float
    local_cost: Floats
    lo: Ints
    hi: Ints
    step_cost: Floats
    feature_cost: Floats
    weights: Floats


@dataclass(frozen=True)
class Explanation:
    """Why a video was called `predicted.name` and not `rival.name`.

    Attributes:
        label: its true class, where known.
        top: best classes and their probabilities.
        predicted: the alignment with the predicted class.
        rival: with the true class where the prediction is wrong, else with the runner-up.
        start_s, end_s: (T,) seconds of each step.
        feature_names: (F,) of the features behind the head's input layer.
    """

    video_id: str
    label: str | None
    top: tuple[tuple[str, float], ...]
    predicted: Alignment
    rival: Alignment
    start_s: Floats
    end_s: Floats
    feature_names: tuple[str, ...]

    @property
    def step_gain(self) -> Floats:
        """(T,) how much more each step costs in the rival than in the predicted class; sums to the margin."""
        return self.rival.step_cost - self.predicted.step_cost

    @property
    def feature_gain(self) -> Floats:
        """(F,) the same by feature."""
        return self.rival.feature_cost - self.predicted.feature_cost

    @property
    def right(self) -> bool | None:
        return None if self.label is None else self.label == self.predicted.name


@torch.no_grad()
def explain(head: DejaVidHead, tse: Tse, *, feature_names: Sequence[str] | None = None) -> Explanation:
    """Explains what the head says of one TSE.

    Args:
        feature_names: of the TSE's features; None: their numbers, from 0.

    Raises:
        ConfigError: the head has one class only, so that there is nothing to compare.
    """
    names = head.class_names
    if len(names) < 2:
        raise ConfigError(
            f"the head knows one class, {names[0]!r}",
            where="explain",
            fix="train a head on two or more classes",
        )
    head.eval()
    values, offsets = torch.from_numpy(tse.values), torch.tensor([0, len(tse.values)])
    steps = head.inputs(values, offsets)
    # The order of distances is that of the probabilities, and it has no ties where these round to 0.
    distances = head.distances(steps, offsets, prepared=True)
    probabilities = head.logits(distances, offsets.diff()).softmax(1)[0]
    order = distances[0].argsort(stable=True).tolist()
    best, rival = order[0], order[1]
    if tse.label in names and names.index(tse.label) != best:
        rival = names.index(tse.label)
    predicted, against = _align(head, steps, [best, rival])
    top = tuple((names[c], float(probabilities[c])) for c in order[:TOP_CLASSES])
    named = _feature_names(head, feature_names)
    return Explanation(tse.video_id, tse.label, top, predicted, against, tse.start_s, tse.end_s, named)


def _feature_names(head: DejaVidHead, names: Sequence[str] | None) -> tuple[str, ...]:
    """Names behind the input layer: those of the kept columns, and of the time it may add."""
    every = names or [f"feature {number}" for number in range(head.inputs.n_features_in)]
    time = ("relative time",) if head.inputs.position > 0 else ()
    return (*every[slice(*head.inputs.columns)], *time)


def _align(head: DejaVidHead, steps: Tensor, classes: Sequence[int]) -> list[Alignment]:
    centroids, log_weights = head.centroids[list(classes)], head.log_weights[list(classes)]
    lo, hi = warping_path(
        steps,
        [0, len(steps)],
        centroids,
        log_weights,
        step_pattern=head.step_pattern,
        backend=head.backend,
    )
    position = torch.arange(len(steps))
    found = []
    for row, c in enumerate(classes):
        weights = log_weights[row].exp()
        # (Tc, T, F): small, since it is one video and one class.
        cost = weights[:, None] * (centroids[row][:, None] - steps[None]).abs()
        on_path = (position >= lo[0, row].cpu()[:, None]) & (position <= hi[0, row].cpu()[:, None])
        on_path = on_path.to(cost)
        local = cost.sum(2)
        found.append(
            Alignment(
                head.class_names[c],
                float((local * on_path).sum()),
                local.numpy(force=True),
                lo[0, row].numpy(force=True),
                hi[0, row].numpy(force=True),
                (local * on_path).sum(0).numpy(force=True),
                (cost * on_path[..., None]).sum((0, 1)).numpy(force=True),
                weights.numpy(force=True),
            )
        )
    return found


@dataclass(frozen=True)
class Moment:
    """A step of a training video."""

    video_id: str
    step: int
    start_s: float
    end_s: float
    cost: float


@torch.no_grad()
def nearest_moments(head: DejaVidHead, class_name: str, store: Store, ids: Sequence[str]) -> list[Moment]:
    """For each centroid step of a class, the training step that is cheapest to align with it.

    Args:
        head: the head.
        class_name: one of its classes.
        store: where the TSEs are.
        ids: training videos of the class; the first 50 are searched.

    Returns:
        Tc moments; empty without ids.
    """
    if not ids:
        return []
    batch = store.read(list(ids[:MAX_SEARCHED]))
    c = head.class_names.index(class_name)
    steps = head.inputs(torch.from_numpy(batch.values), torch.from_numpy(batch.offsets))
    weights = head.log_weights[c].exp()
    moments = []
    for t in range(len(weights)):
        cost = (steps - head.centroids[c, t]).abs() @ weights[t]
        place = int(cost.argmin())
        video = int(np.searchsorted(batch.offsets, place, side="right")) - 1
        step = place - int(batch.offsets[video])
        tse = store.get(batch.ids[video])
        times = float(tse.start_s[step]), float(tse.end_s[step])
        moments.append(Moment(batch.ids[video], step, *times, float(cost[place])))
    return moments
