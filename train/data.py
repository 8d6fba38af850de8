"""Training data: packed TSEs with labels, kept on the device, in memory, or read from a store per batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from .inputs import InputLayer

if TYPE_CHECKING:
    from ..store import Store

# Share of the free memory (of the device, of the machine) that resident data may take.
_DEVICE_SHARE = 0.6
_MEMORY_SHARE = 0.5
_BUCKET_BATCHES = 16


@dataclass(frozen=True)
class Batch:
    """One optimiser step's share of one process.

    Attributes:
        values: (S, F) packed steps, behind the head's input layer; offsets: (N + 1,) int64 on the CPU;
            labels: (N,) int64.
        shares: (N,) weight of each sample's loss; they sum to 1 over the processes of the step.
    """

    values: Tensor
    offsets: Tensor
    labels: Tensor
    shares: Tensor


class Samples(Protocol):
    """What training reads: N labelled TSEs that can be taken by position."""

    labels: Tensor
    lengths: Tensor
    n_features: int
    mode: str

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Packed values (S, F) and offsets (n + 1,) of the samples at `positions`."""
        ...

    def subset(self, positions: Tensor) -> Samples:
        """The samples at `positions`, as a set of their own, kept in the same way."""
        ...


class PackedSamples:
    """All TSEs in one tensor, on whatever device it is on.

    Args:
        values: (S, F); float16, bfloat16, float32 or float64.
        offsets: (N + 1,) int64.
        labels: (N,) class positions.

    Raises:
        ConfigError: parts that do not fit together, an empty TSE, or NaN.
    """

    def __init__(self, values: Any, offsets: Any, labels: Any) -> None:
        self.values = torch.as_tensor(values)
        self.offsets = torch.as_tensor(offsets).to("cpu", torch.int64)
        self.labels = torch.as_tensor(labels).to("cpu", torch.int64)
        self.mode = "resident on the device" if self.values.device.type != "cpu" else "resident in memory"
        _check_packed(self.values, self.offsets, self.labels)
        self.n_features = self.values.shape[1]
        self.lengths = self.offsets.diff()

    def to(self, device: torch.device) -> PackedSamples:
        """The same samples, on a device."""
        return PackedSamples(self.values.to(device), self.offsets, self.labels)

    def subset(self, positions: Tensor) -> PackedSamples:
        return PackedSamples(*self.take(positions), self.labels[positions])

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        lengths = self.lengths[positions]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        shift = torch.repeat_interleave(self.offsets[positions] - offsets[:-1], lengths)
        rows = torch.arange(int(offsets[-1])) + shift
        return self.values.index_select(0, rows.to(self.values.device)), offsets


class StoredSamples:
    """TSEs that stay in their store and are read when a batch asks for them."""

    mode = "streamed from the store"

    def __init__(self, store: Store, ids: Sequence[str], labels: Any) -> None:
        self._store, self._ids = store, list(ids)
        self.labels = torch.as_tensor(labels).to(torch.int64)
        self.lengths = torch.as_tensor(store.lengths(self._ids))
        self.n_features = store.feature_dim

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return read_stored(self._store, [self._ids[i] for i in positions.tolist()])

    def subset(self, positions: Tensor) -> StoredSamples:
        return StoredSamples(self._store, [self._ids[i] for i in positions.tolist()], self.labels[positions])


def read_stored(store: Store, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Packed values (S, F), in the type they are stored in, and offsets (N + 1,) of some videos."""
    batch = store.read(ids, dtype="stored")
    values = torch.from_numpy(batch.values)
    # NumPy has no bfloat16: the store hands out its bits.
    return (values.view(torch.bfloat16) if store.dtype == "bfloat16" else values), torch.from_numpy(
        batch.offsets
    )


def load_samples(
    store: Store,
    ids: Sequence[str],
    labels: Any,
    *,
    device: torch.device,
    data: str = "auto",
) -> Samples:
    """The training samples of a store, kept where they fit.

    Args:
        store: where the TSEs are.
        ids: which, in order.
        labels: their class positions.
        device: where the head trains.
        data: "device", "memory" or "stream"; "auto" takes the first that fits into the free memory.

    Raises:
        ConfigError: no ids, or an unknown option.
        StoreError: an id is not in the store, or its part cannot be read.
    """
    if len(ids) == 0:
        raise ConfigError(
            "no videos to load", where="train", fix="look at the split with dejavid store status"
        )
    if data == "auto":
        data = _fitting_mode(store, ids, device)
    if data == "stream":
        return StoredSamples(store, ids, labels)
    if data not in ("device", "memory"):
        raise ConfigError(f"data={data!r}", where="train.data", fix="use auto, device, memory or stream")
    values, offsets = read_stored(store, ids)
    return PackedSamples(values.to(device) if data == "device" else values, offsets, labels)


def epoch_order(n_samples: int, seed: int, epoch: int) -> Tensor:
    """The samples of an epoch, shuffled: a function of its arguments alone, so that a run can be resumed."""
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(n_samples, generator=generator)


def bucketed(order: Tensor, lengths: Tensor, batch_size: int) -> Tensor:
    """Reorders a shuffled epoch so that the samples of one batch are about equally long.

    Sorts within runs of 16 batches, so batches still change from epoch to epoch; the batches of a run keep no
    order.
    """
    runs = []
    for run in torch.split(order, batch_size * _BUCKET_BATCHES):
        by_length = run[lengths[run].argsort(stable=True)]
        whole = len(by_length) // batch_size * batch_size
        batches = list(torch.split(by_length[:whole], batch_size))
        # Ordered by their first sample's place in the shuffle: random, and needs no second generator.
        place = {int(sample): index for index, sample in enumerate(run.tolist())}
        batches.sort(key=lambda batch: place[int(batch[0])])
        runs += [*batches, by_length[whole:]]
    return torch.cat(runs)


def batches(
    samples: Samples,
    order: Tensor,
    batch_size: int,
    *,
    inputs: InputLayer,
    device: torch.device,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """This process's share of every step of an epoch, the next one prepared while one is used.

    Every process gets at least one sample of a step; where a step has fewer samples than processes, the rest
    get a repeated one of share 0. So the shares of all processes are those of a single process, exactly.

    Args:
        order: positions of the epoch's samples.
        batch_size: samples per step, over all processes.
        inputs: what the steps of the TSEs pass.
        start: first step to yield.
    """
    steps = list(torch.split(order, batch_size))[start:]

    def prepare(step: Tensor) -> Batch:
        mine = step[rank::world]
        share = torch.full((len(mine),), 1 / len(step))
        if len(mine) == 0:
            mine, share = step[:1], torch.zeros(1)
        values, offsets = samples.take(mine)
        steps = inputs(values.to(device, non_blocking=True), offsets)
        return Batch(steps, offsets, samples.labels[mine].to(device), share.to(device))

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(prepare, steps[0]) if steps else None
        for following in [*steps[1:], None]:
            if ahead is None:
                return
            batch = ahead.result()
            ahead = None if following is None else pool.submit(prepare, following)
            yield batch


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits positions into (kept, held out), `share` of every class held out but never all of a class."""
    generator = torch.Generator().manual_seed(seed)
    held: list[Tensor] = []
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().squeeze(1)
        count = min(round(share * len(members)), len(members) - 1)
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    chosen = torch.cat(held).sort().values
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[chosen] = False
    return kept.nonzero().squeeze(1), chosen


def _fitting_mode(store: Store, ids: Sequence[str], device: torch.device) -> str:
    item_bytes = 4 if store.dtype == "float32" else 2
    n_bytes = int(store.lengths(ids).sum()) * store.feature_dim * item_bytes
    if device.type == "cuda" and n_bytes < _DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return "memory" if n_bytes < _MEMORY_SHARE * free else "stream"


def _check_packed(values: Tensor, offsets: Tensor, labels: Tensor) -> None:
    problem = None
    if values.ndim != 2 or not values.is_floating_point():
        problem = f"values have the shape {tuple(values.shape)} and type {values.dtype}"
    elif len(offsets) != len(labels) + 1 or int(offsets[-1]) != len(values) or int(offsets[0]) != 0:
        problem = f"{len(labels)} labels and offsets 0..{int(offsets[-1])} for {len(values)} rows"
    elif bool((offsets.diff() < 1).any()):
        problem = f"sample {int((offsets.diff() < 1).nonzero()[0])} has no steps"
    if problem:
        raise ConfigError(
            problem, where="training samples", fix="give values (S, F), offsets (N + 1,) and labels (N,)"
        )
    finite = torch.isfinite(values).all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        sample = int(torch.searchsorted(offsets, row, right=True)) - 1
        raise ConfigError(
            f"NaN or infinite features ({int((~finite).sum())} of {len(values)} steps)",
            where=f"training sample {sample}",
            fix="extract it again, or leave it out of the manifest",
        )
