"""`tcclip:FOLDER` is an encoder like any other: windows in, embeddings and logits out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numbered_videos import write_video
from torch import Tensor

from dejavid.config import parse_config
from dejavid.errors import ConfigError
from dejavid.extract import extract_videos, load_encoder
from dejavid.extract.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from dejavid.extract.encoders.tcclip.convert import convert, load
from dejavid.extract.encoders.tcclip.encoder import TcClipEncoder
from dejavid.extract.encoders.tcclip.prompts import prompts_of, tokenise
from dejavid.store import open_store

Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def clips() -> Tensor:
    return torch.randint(
        0, 256, (2, 4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )


@pytest.fixture(scope="session")
def labels(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.json"
    path.write_text(json.dumps({str(i): name for i, name in enumerate(config["class_names"])}))
    return path


@pytest.mark.parametrize("case", ["a", "b"])
@torch.no_grad()
def test_embeddings_and_logits_are_the_models(
    case: str, folder: Folder, labels: Path, clips: Tensor, config: dict[str, Any]
) -> None:
    encoder = load_encoder(f"tcclip:{folder(case)}?labels={labels}", device="cpu")
    assert (encoder.feature_dim, encoder.num_classes) == (64, 5)
    assert (encoder.spec.frames, encoder.spec.height, encoder.spec.short_side) == (4, 64, 73)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = ((clips / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    tc, tokenizer = load(folder(case))
    tokens = tokenise(tokenizer, prompts_of(config["class_names"], tc.options), tc.options.context_length)
    encoded = encoder.encode(clips)
    torch.testing.assert_close(encoded.features, tc.encode_video(pixels).embedding, atol=1e-4, rtol=0)
    torch.testing.assert_close(encoded.logits, tc(pixels, tokens), atol=1e-3, rtol=0)
    torch.testing.assert_close(encoded.features.norm(dim=1), torch.ones(2))


def test_without_labels_there_are_no_logits(folder: Folder, clips: Tensor) -> None:
    encoder = load_encoder(f"tcclip:{folder('a')}", device="cpu")
    assert encoder.num_classes == 0
    assert encoder.encode(clips).logits is None


def test_whatever_changes_a_feature_changes_the_id(
    folder: Folder, labels: Path, base: str, tmp_path: Path
) -> None:
    uri = f"tcclip:{folder('a')}"
    options = {"n_context": 7, "prompt_levels": [3], "n_frames": 4}
    for name, changes in (("x", options), ("y", {**options, "n_context": 9})):
        torch.manual_seed(0)
        convert(None, base, tmp_path / name, changes={"method": "tcclip", **changes})
    uris = [uri, f"{uri}?labels={labels}", f"{uri}?frames=8", f"tcclip:{tmp_path}/x", f"tcclip:{tmp_path}/y"]
    ids = [load_encoder(item, device="cpu").id for item in uris]
    assert len(set(ids)) == len(ids)
    assert load_encoder(uri, device="cpu").id == ids[0]
    assert load_encoder(uri, device="cpu", precision="bfloat16").id != ids[0]


def test_other_numbers_of_frames(folder: Folder, clips: Tensor) -> None:
    encoder = load_encoder(f"tcclip:{folder('a')}?frames=1", device="cpu")
    assert encoder.encode(clips[:, :1]).features.shape == (2, 64)
    with pytest.raises(ConfigError, match="positions for 4"):
        load_encoder(f"tcclip:{folder('b')}?frames=5", device="cpu")
    with pytest.raises(ValueError, match="clips must be uint8"):
        encoder.encode(clips)


def test_the_baselines_are_encoders_too(base: str, clips: Tensor, tmp_path: Path) -> None:
    for method in ("clip", "vifi_clip"):
        convert(None, base, tmp_path / method, changes={"method": method, "n_frames": 4})
        encoder = load_encoder(f"tcclip:{tmp_path / method}", device="cpu")
        assert encoder.encode(clips).features.shape == (2, 64)
        assert isinstance(encoder, TcClipEncoder)
        with pytest.raises(ConfigError, match="no context tokens"):
            encoder.context_sources(clips)


def test_where_context_tokens_come_from(folder: Folder, clips: Tensor) -> None:
    encoder = load_encoder(f"tcclip:{folder('a')}", device="cpu")
    assert isinstance(encoder, TcClipEncoder)
    sources = encoder.context_sources(clips)
    assert sources.shape == (2, 3, 5, 4, 4, 4)
    assert sources.sum() == 2 * 3 * 16  # each of 4 x 4 seeds in one token of each layer


def test_half_precision(folder: Folder, labels: Path, clips: Tensor) -> None:
    encoder = load_encoder(f"tcclip:{folder('a')}?labels={labels}", device="cpu", precision="bfloat16")
    encoded = encoder.encode(clips)
    assert encoded.features.dtype == torch.float32
    assert encoded.logits is not None
    assert encoded.logits.dtype == torch.float32
    assert encoded.logits.isfinite().all()


def test_what_is_refused(folder: Folder, tmp_path: Path) -> None:
    for uri, words in (
        (f"tcclip:{tmp_path}", "no model of this family"),
        (f"tcclip:{folder('a')}?labels={tmp_path}/absent.csv", "no list of classes"),
        (f"tcclip:{folder('a')}?frames=0", "no positive whole number"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_encoder(uri, device="cpu")
    (tmp_path / "long.csv").write_text("id,name\n0," + "very " * 40 + "long\n")
    with pytest.raises(ConfigError, match="more than the 30"):
        load_encoder(f"tcclip:{folder('a')}?labels={tmp_path / 'long.csv'}", device="cpu")


def test_windows_become_steps_of_embeddings_and_logits(folder: Folder, labels: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 13, size=(96, 80))
    (tmp_path / "m.csv").write_text("video_id,path,label,split\nv,v.mp4,zumba,train\n")
    section = {
        "encoder": f"tcclip:{folder('a')}?labels={labels}",
        "clip_len": 4,
        "frame_interval": 1,
        "hop": 3,
        "rows": "embedding+logits",
        "device": "cpu",
        "workers": 0,
    }
    config = parse_config(
        {
            "run": {"dir": str(tmp_path / "run")},
            "manifest": {"path": str(tmp_path / "m.csv")},
            "store": {"dtype": "float32"},
            "extract": section,
        },
        "test",
    )
    extract_videos(config, progress=False)
    values = open_store(config.store_path).get("v").values
    assert values.shape == (4, 64 + 5)
    np.testing.assert_allclose(np.linalg.norm(values[:, :64], axis=1), 1, atol=1e-5)
