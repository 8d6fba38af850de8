"""A model in training: optimiser steps over accumulated micro-batches, in mixed precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .....checkpoint import optimizer_tensors, restore_optimizer
from .....config import Config
from .....distributed import World
from ...base import IMAGENET_MEAN, IMAGENET_STD, Normaliser
from ..model import TcClip
from ..text import TextState
from .blend import blend, smoothed
from .protocols import Protocol
from .schedule import freeze, learning_rate, make_optimizer
from .videos import MicroBatch

_SCALER = "scaler."


class Learner:
    """A model, what trains it, and the precision it runs in.

    Args:
        model: float32; it is moved to the device.
        tokens: (C, L) prompt ids.
        config: its sections tcclip and extract (precision).
        protocol: of the run.
        world: the processes that train together.
        device: of this one.
    """

    def __init__(
        self,
        model: TcClip,
        tokens: Tensor,
        config: Config,
        protocol: Protocol,
        world: World,
        device: torch.device,
    ) -> None:
        section = config.tcclip
        freeze(model, section.freeze)
        self.model = model.to(device)
        self.n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._tokens, self._device, self._world = tokens.to(device), device, world
        self._section, self._protocol = section, protocol
        self._normalise = Normaliser(IMAGENET_MEAN, IMAGENET_STD, "BTCHW", device, torch.float32)
        self.optimizer = make_optimizer(
            model, lr=protocol.lr, lr_10x=section.lr_10x, weight_decay=section.weight_decay
        )
        self._parallel: nn.Module = DistributedDataParallel(model) if world.size > 1 else model
        precision = config.extract.precision
        if precision == "auto":
            precision = "bfloat16" if device.type == "cuda" else "float32"
        self.dtype: torch.dtype = getattr(torch, precision)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def set_rates(self, index: int | None, n_iterations: int) -> None:
        """The rates of the coming step.

        Args:
            index: of the last micro-batch before it, counted over the run; None before the first step.
            n_iterations: micro-batches of an epoch.
        """
        for group in self.optimizer.param_groups:
            if index is None:
                group["lr"] = 0.0
                continue
            group["lr"] = learning_rate(
                index,
                n_iterations,
                epochs=self._protocol.epochs,
                warmup_epochs=self._protocol.warmup_epochs,
                peak=group["peak"],
                lowest=self._protocol.lr_min,
            )

    def step(self, batches: Iterable[tuple[MicroBatch, int]], n_batches: int) -> float:
        """One optimiser step.

        Args:
            batches: `n_batches` micro-batches, and the seed that each is blended with.

        Returns:
            The mean loss, over all processes.
        """
        total = torch.zeros((), device=self._device)
        self.optimizer.zero_grad()
        for number, (batch, seed) in enumerate(batches, start=1):
            # Where gradients only add up, the processes need not tell each other.
            with self._without_exchange() if number < n_batches else nullcontext():
                loss = self._loss(batch, seed) / n_batches
                torch.autograd.backward(self._scaler.scale(loss))
            total += loss.detach()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return float(self._world.sum(total)) / self._world.size

    def _loss(self, batch: MicroBatch, seed: int) -> Tensor:
        """Cross-entropy with soft targets, mean over the videos."""
        pixels = self._normalise(batch.clips.to(self._device))
        targets = smoothed(batch.labels.to(self._device), len(self._tokens), self._section.label_smoothing)
        if self._section.blend:
            pixels, targets = blend(pixels, targets, seed)
        with self._autocast():
            logits = self._parallel(pixels, self._tokens)
        return F.cross_entropy(logits.float(), targets) * batch.weight

    @torch.no_grad()
    def prompts(self) -> TextState:
        """The classes, for `logits`; as the weights are now."""
        with self._autocast():
            return self.model.encode_prompts(self._tokens)

    @torch.no_grad()
    def logits(self, clips: Tensor, prompts: TextState) -> Tensor:
        """uint8 (B, T, H, W, 3) -> (B, C) float32."""
        with self._autocast():
            return self.model.logits(self.model.encode_video(self._normalise(clips)), prompts).float()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, for a checkpoint."""
        scaler = {_SCALER + key: torch.tensor(value) for key, value in self._scaler.state_dict().items()}
        return {**self.model.state_dict(), **optimizer_tensors(self.optimizer), **scaler}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `tensors` gave."""
        restore_optimizer(self.optimizer, tensors)
        self.model.load_state_dict({name: tensors[name] for name in self.model.state_dict()})
        if self._scaler.is_enabled():
            scaler = {key: tensors[_SCALER + key].item() for key in self._scaler.state_dict()}
            self._scaler.load_state_dict(scaler)

    def _without_exchange(self) -> AbstractContextManager[None]:
        if isinstance(self._parallel, DistributedDataParallel):
            return self._parallel.no_sync()
        return nullcontext()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, self.dtype, enabled=self.dtype != torch.float32)
