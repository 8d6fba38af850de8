"""The four ways in which TC-CLIP is trained, by name; keys of the configuration replace values."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from .....config import TcclipSection
from .....errors import ConfigError


@dataclass(frozen=True)
class Protocol:
    """How a model is trained. Fields as the keys of the section `tcclip`.

    Attributes:
        epochs, warmup_epochs: as whole numbers.
        lr, lr_min: where the learning rate rises to, and what it falls towards.
        batch_size: videos of one optimiser step, over all processes.
        shots: training videos per class; 0: all.
        validate_every: epochs; the first and the last one are validated in any case.
        val_clips: clips per video in validation.
    """

    epochs: int
    warmup_epochs: int
    lr: float
    lr_min: float
    batch_size: int
    shots: int = 0
    validate_every: int = 1
    val_clips: int = 1


PROTOCOLS: dict[str, Protocol] = {
    "zero_shot": Protocol(10, 5, 8e-6, 8e-8, 256),
    "few_shot": Protocol(50, 5, 2e-6, 2e-8, 64, shots=16, validate_every=10, val_clips=2),
    "base_to_novel": Protocol(12, 2, 3.33e-6, 3.33e-8, 64, shots=16, val_clips=2),
    "fully_supervised": Protocol(30, 5, 2.2e-5, 2.2e-7, 512),
}


def resolve_protocol(section: TcclipSection) -> Protocol:
    """The protocol of the section with the keys that the section sets itself.

    Raises:
        ConfigError: the learning rate would fall below its end, or never stop rising.
    """
    names = [field.name for field in fields(Protocol)]
    given = {name: value for name in names if (value := getattr(section, name)) is not None}
    protocol = replace(PROTOCOLS[section.protocol], **given)
    if protocol.lr_min > protocol.lr:
        raise ConfigError(
            f"lr_min = {protocol.lr_min:g} is above lr = {protocol.lr:g}",
            where="tcclip.lr_min",
            fix=f"--set tcclip.lr_min={protocol.lr / 100:g}",
        )
    if protocol.warmup_epochs > protocol.epochs:
        raise ConfigError(
            f"{protocol.warmup_epochs} epochs of warm-up in {protocol.epochs} epochs",
            where="tcclip.warmup_epochs",
            fix=f"--set tcclip.warmup_epochs={protocol.epochs // 5}",
        )
    return protocol
