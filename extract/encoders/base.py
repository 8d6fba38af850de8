"""What every encoder offers, and the part of it that all torch models share."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import ConfigError

Layout = Literal["BTCHW", "BCTHW", "BCHW"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ClipSpec:
    """What an encoder wants to see.

    Args:
        frames: frames per clip; 1 marks an image encoder, whose features are averaged over a window.
        height, width: of a crop, in pixels.
        short_side: of the frame before cropping; 0 takes the smaller of height and width.
        resize: keep the aspect ratio, or squash the frame to height x width.
        interpolation, antialias: of that resize.
    """

    frames: int
    height: int
    width: int
    short_side: int = 0
    resize: Literal["short_side", "squash"] = "short_side"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = False

    def __post_init__(self) -> None:
        if not self.short_side:
            object.__setattr__(self, "short_side", min(self.height, self.width))


class Encoded(NamedTuple):
    """Features (B, feature_dim) float32; logits (B, num_classes) float32, None without a head."""

    features: Tensor
    logits: Tensor | None


class ClipEncoder(Protocol):
    """A frozen encoder. It scales, normalises and permutes by itself: callers only handle uint8 frames."""

    id: str  # family, weight digest, precision: part of the store's fingerprint
    spec: ClipSpec
    feature_dim: int
    num_classes: int  # 0: no head
    device: torch.device

    def encode(self, clips: Tensor) -> Encoded:
        """uint8 (B, T, H, W, 3) on `device` -> features and logits on `device`."""
        ...


class TorchEncoder:
    """A `ClipEncoder` around a torch model whose head has been taken off.

    Args:
        family: names the adapter in `id`.
        model: normalised pixels -> (B, feature_dim), or whatever `embed` reads; put into eval mode.
        head: features -> logits; None without a head.
        spec: frames and size.
        feature_dim: width of the features.
        mean, std: of each channel, for pixels scaled to [0, 1].
        layout: how the model wants its input.
        embed: calls the model; default: `model(pixels)`.
        device, dtype: where and in what precision it runs.
        compile: torch.compile the model.
    """

    def __init__(
        self,
        *,
        family: str,
        model: nn.Module,
        head: nn.Module | None,
        spec: ClipSpec,
        feature_dim: int,
        mean: Sequence[float],
        std: Sequence[float],
        layout: Layout,
        embed: Callable[[nn.Module, Tensor], Tensor] | None = None,
        device: torch.device,
        dtype: torch.dtype,
        compile: bool = False,
    ) -> None:
        parts = {"model": model, **({} if head is None else {"head": head})}
        self.digest = weights_digest(parts)
        self.id = f"{family}-{self.digest[:16]}-{str(dtype).removeprefix('torch.')}"
        self.spec = spec
        self.feature_dim = feature_dim
        self.num_classes = _n_outputs(head)
        self.device = device
        self.n_parameters = sum(p.numel() for part in parts.values() for p in part.parameters())
        self._model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self._head = (
            None if head is None else head.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        )
        embed = embed or _call
        forward = lambda pixels: embed(self._model, pixels)  # noqa: E731
        self.embed: Callable[[Tensor], Tensor] = torch.compile(forward) if compile else forward
        self.normalise = Normaliser(mean, std, layout, device, dtype)

    @torch.inference_mode()
    def encode(self, clips: Tensor) -> Encoded:
        """See `ClipEncoder.encode`."""
        self.check(clips)
        features = self.embed(self.normalise(clips)).float()
        return Encoded(features, None if self._head is None else self._head(features))

    def check(self, clips: Tensor) -> None:
        """Raises ValueError unless the clips are uint8 and of the shape that `spec` says."""
        expected = (self.spec.frames, self.spec.height, self.spec.width, 3)
        if clips.dtype != torch.uint8 or clips.ndim != 5 or tuple(clips.shape[1:]) != expected:
            raise ValueError(f"clips must be uint8 (B, *{expected}), not {clips.dtype} {tuple(clips.shape)}")


class Normaliser:
    """Makes of uint8 (B, T, H, W, 3) the pixels that a model wants.

    Args:
        mean, std: of each channel, for pixels scaled to [0, 1].
        layout: of the result.
        device, dtype: of the result.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        layout: Layout,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        # (x / 255 - mean) / std as one multiply-add
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=device)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
        self._layout, self._dtype = layout, dtype

    def __call__(self, clips: Tensor) -> Tensor:
        pixels = torch.addcmul(self._shift, clips.float(), self._scale).to(self._dtype)
        match self._layout:
            case "BTCHW":
                return pixels.permute(0, 1, 4, 2, 3)
            case "BCTHW":
                return pixels.permute(0, 4, 1, 2, 3)
            case "BCHW":  # an image model: its single frame
                return pixels.squeeze(1).permute(0, 3, 1, 2)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or a torch checkpoint, without the wrapper that training code adds.

    Pickles are read with `weights_only`, so no code of theirs runs.

    Raises:
        ConfigError: there is no file, or nothing that can be read safely.
    """
    try:
        if path.suffix == ".safetensors":
            data: Any = load_file(path)
        else:
            # Training scripts save their arguments too.
            with torch.serialization.safe_globals([argparse.Namespace]):
                data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise ConfigError(
            "there is no such checkpoint", where=str(path), fix="give a .pth or .safetensors file"
        ) from None
    except Exception as error:  # torch and safetensors raise many kinds for a file that is none of theirs
        raise ConfigError(
            f"no checkpoint that can be read safely: {str(error).splitlines()[0]}",
            where=str(path),
            fix="give a file of tensors; other pickles are refused",
        ) from None
    for wrapper in ("model", "module", "state_dict"):
        if isinstance(data, Mapping) and isinstance(data.get(wrapper), Mapping):
            data = data[wrapper]
            break
    items = data.items() if isinstance(data, Mapping) else ()
    return {key: value for key, value in items if isinstance(value, Tensor)}


def weights_digest(parts: Mapping[str, nn.Module]) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers of the parts."""
    digest = hashlib.sha256()
    for part, module in sorted(parts.items()):
        for name, value in sorted(module.state_dict().items()):
            array = value.detach().cpu().contiguous()
            digest.update(f"{part}.{name}:{array.dtype}:{tuple(array.shape)};".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _call(model: nn.Module, pixels: Tensor) -> Tensor:
    features: Tensor = model(pixels)
    return features


def _n_outputs(head: nn.Module | None) -> int:
    if head is None:
        return 0
    linear = [m for m in head.modules() if isinstance(m, nn.Linear)]
    return linear[-1].out_features
