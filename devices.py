"""Where things are computed: the device that a key of the configuration names."""

from __future__ import annotations

import torch

from .errors import ConfigError


def device_of(name: str, key: str = "train.device") -> torch.device:
    """The device an option names; "auto" is the first CUDA device if there is one.

    Args:
        name: auto, cpu, cuda, cuda:1 ...
        key: of the configuration that holds it, for the error.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    n_cuda = torch.cuda.device_count()
    if device is None or (device.type == "cuda" and (device.index or 0) >= n_cuda):
        raise ConfigError(
            f"device {name!r} is not usable here",
            where=key,
            fix="auto, cpu, cuda or cuda:1; dejavid doctor shows the devices",
        )
    return device
