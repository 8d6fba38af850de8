"""VideoMAE V2 in transformers' class: the official outputs, every wrapper, and what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dejavid.errors import ConfigError
from dejavid.extract import load_encoder
from dejavid.extract.encoders import Options
from dejavid.extract.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from dejavid.extract.encoders.videomae2 import load, to_transformers

GOLDEN = Path(__file__).parents[1] / "golden" / "videomae" / "videomaev2_tiny.safetensors"
OPTIONS = "?size=56&heads=4"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def weights(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("weights."): v for key, v in golden.items() if key.startswith("weights.")}


@pytest.fixture(scope="module")
def checkpoint(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videomae2") / "tiny.safetensors"
    save_file(weights, path)
    return path


def test_features_and_logits_are_the_official_ones(golden: dict[str, Tensor], checkpoint: Path) -> None:
    encoder = load_encoder(f"videomae2:{checkpoint}{OPTIONS}", device="cpu")
    assert (encoder.feature_dim, encoder.num_classes, encoder.spec.frames) == (64, 11, 16)
    encoded = encoder.encode(golden["input_uint8"])
    torch.testing.assert_close(encoded.features, golden["out.features"], atol=5e-6, rtol=0)
    torch.testing.assert_close(encoded.logits, golden["out.logits"], atol=5e-6, rtol=0)


def test_in_double_precision(golden: dict[str, Tensor], checkpoint: Path, weights: dict[str, Tensor]) -> None:
    options = Options(torch.device("cpu"), torch.float64, False, {"size": "56", "heads": "4"})
    encoder = load(str(checkpoint), options)
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((golden["input_uint8"].double() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    with torch.inference_mode():
        features = encoder.embed(pixels)
    torch.testing.assert_close(features, golden["out64.features"], atol=1e-12, rtol=0)
    logits = features @ weights["head.weight"].double().T + weights["head.bias"].double()
    torch.testing.assert_close(logits, golden["out64.logits"], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_half_precision_stays_close(
    golden: dict[str, Tensor], checkpoint: Path, dtype: str, bound: float
) -> None:
    encoder = load_encoder(f"videomae2:{checkpoint}{OPTIONS}", device="cpu", precision=dtype)
    features = encoder.encode(golden["input_uint8"]).features
    assert features.dtype == torch.float32
    error = (features - golden["out.features"]).norm() / golden["out.features"].norm()
    assert error < bound
    assert encoder.id.endswith(dtype)  # another store


@pytest.mark.parametrize("wrapper", [None, "model", "module"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "backbone.", "encoder.", "model."])
def test_wrappers_and_prefixes(
    weights: dict[str, Tensor], checkpoint: Path, tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    state: object = {prefix + key: value for key, value in weights.items()}
    if wrapper:
        state = {wrapper: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(state, tmp_path / "c.pth")
    expected = load_encoder(f"videomae2:{checkpoint}{OPTIONS}", device="cpu")
    assert load_encoder(f"videomae2:{tmp_path / 'c.pth'}{OPTIONS}", device="cpu").id == expected.id


def test_a_checkpoint_without_a_head(
    weights: dict[str, Tensor], golden: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file({k: v for k, v in weights.items() if not k.startswith("head.")}, tmp_path / "c.safetensors")
    encoder = load_encoder(f"videomae2:{tmp_path / 'c.safetensors'}{OPTIONS}", device="cpu")
    encoded = encoder.encode(golden["input_uint8"])
    assert encoder.num_classes == 0
    assert encoded.logits is None
    torch.testing.assert_close(encoded.features, golden["out.features"], atol=5e-6, rtol=0)


def test_some_rows_of_the_head(golden: dict[str, Tensor], checkpoint: Path, tmp_path: Path) -> None:
    """As Kinetics-710 heads serve the 400 classes."""
    rows = [3, 0, 7]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    encoder = load_encoder(f"videomae2:{checkpoint}{OPTIONS}&rows={tmp_path / 'rows.json'}", device="cpu")
    encoded = encoder.encode(golden["input_uint8"])
    torch.testing.assert_close(encoded.logits, golden["out.logits"][:, rows], atol=5e-6, rtol=0)
    (tmp_path / "rows.json").write_text("[99]")
    with pytest.raises(ConfigError, match="no list of rows"):
        load_encoder(f"videomae2:{checkpoint}{OPTIONS}&rows={tmp_path / 'rows.json'}", device="cpu")


class _Danger:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never run",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"blocks.0.attn.scale": torch.ones(4)}, "cosine"),
        ({"blocks.0.gamma_1": torch.ones(64)}, "LayerScale"),
        ({"fc_norm.weight": None}, "no fc_norm"),
        ({"patch_embed.proj.weight": None}, "no 3-D patch embedding"),
        ({"blocks.1.mlp.fc2.bias": None}, "do not fit"),
        ({"blocks.0.extra.weight": torch.ones(1)}, "do not fit"),
        ({"videomae.embeddings.x": torch.ones(1)}, "hf:FOLDER"),
    ],
)
def test_models_it_cannot_represent(
    weights: dict[str, Tensor], tmp_path: Path, change: dict[str, Tensor | None], reason: str
) -> None:
    state = {key: value for key, value in {**weights, **change}.items() if value is not None}
    save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(ConfigError) as caught:
        load_encoder(f"videomae2:{tmp_path / 'c.safetensors'}{OPTIONS}", device="cpu")
    assert reason in caught.value.what


def test_files_that_are_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": _Danger()}, tmp_path / "danger.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("danger.pth", "text.pth", "text.safetensors", "absent.pth"):
        with pytest.raises(ConfigError):
            load_encoder(f"videomae2:{tmp_path / name}", device="cpu")
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize("classes", [400, *(pytest.param(n, marks=pytest.mark.slow) for n in (174, 51, 710))])
def test_the_giant_has_the_published_number_of_parameters(classes: int) -> None:
    """On the meta device: 526 official tensors become 606, nothing missing, nothing left over."""
    from dejavid.extract.encoders.base import ClipSpec
    from dejavid.extract.encoders.videomae2 import build_model

    width, hidden = 1408, 6144
    shapes = {"patch_embed.proj.weight": (width, 3, 2, 14, 14), "patch_embed.proj.bias": (width,)}
    for k in range(40):
        block = f"blocks.{k}."
        shapes |= {f"{block}norm{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"{block}attn.{name}": (width,) for name in ("q_bias", "v_bias", "proj.bias")}
        shapes |= {f"{block}attn.qkv.weight": (3 * width, width), f"{block}attn.proj.weight": (width, width)}
        shapes |= {f"{block}mlp.fc1.weight": (hidden, width), f"{block}mlp.fc1.bias": (hidden,)}
        shapes |= {f"{block}mlp.fc2.weight": (width, hidden), f"{block}mlp.fc2.bias": (width,)}
    shapes |= {"fc_norm.weight": (width,), "fc_norm.bias": (width,)}
    shapes |= {"head.weight": (classes, width), "head.bias": (classes,)}
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert len(state) == 526
    assert len(to_transformers(state)) == 606
    model = build_model(state, ClipSpec(16, 224, 224), 16, Path("giant"))
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == 1_011_610_752 + classes * (width + 1)
