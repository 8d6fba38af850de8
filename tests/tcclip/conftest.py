"""The tiny models of the golden files, converted as a user would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dejavid.extract.encoders.tcclip.checkpoints import to_transformers
from dejavid.extract.encoders.tcclip.convert import convert, load
from dejavid.extract.encoders.tcclip.model import TcClip
from dejavid.extract.encoders.transformers_models import import_transformers

GOLDEN = Path(__file__).parents[1] / "golden" / "tcclip"
WIDTHS = {"vision": 96, "text": 64}
SIZES = {"num_hidden_layers": 3, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}


@pytest.fixture(scope="session")
def config() -> dict[str, Any]:
    return json.loads((GOLDEN / "config.json").read_text())


@pytest.fixture(scope="session")
def frames() -> Tensor:
    return load_file(GOLDEN / "frames.safetensors")["frames"].float()


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """The tensors of one file of the golden folder."""
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture(scope="session")
def official(golden: Callable[[str], dict[str, Tensor]]) -> Callable[[str], dict[str, Tensor]]:
    """The official state dict of case a or b."""

    def state(case: str) -> dict[str, Tensor]:
        found = golden("tcclip_state_a")
        if case == "b":
            found = {k: v for k, v in found.items() if not k.endswith("local_global_bias_table")}
            found |= golden("tcclip_state_b_delta")
        return found

    return state


@pytest.fixture(scope="session")
def base(golden: Callable[[str], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny CLIP as a folder of transformers, with the words of CLIP's vocabulary that the tests use."""
    transformers = import_transformers()
    folder = tmp_path_factory.mktemp("clip")
    vision = dict(
        SIZES, hidden_size=96, intermediate_size=384, num_attention_heads=3, image_size=64, patch_size=16
    )
    text = dict(SIZES, hidden_size=64, intermediate_size=256, num_attention_heads=2)
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=64)
    )
    tokens = golden("token_rows")
    table = torch.zeros(49408, 64)
    table[tokens["ids"].long()] = tokens["rows"].float()
    renamed = {
        f"image_encoder.{key.removeprefix('visual.')}"
        if key.startswith("visual.")
        else _text(key): value.float()
        for key, value in golden("clip_state").items()
    }
    state = {key.removeprefix("clip."): v for key, v in to_transformers(renamed, "clip_state").items()}
    clip.load_state_dict({**state, "text_model.embeddings.token_embedding.weight": table})
    clip.save_pretrained(folder)
    transformers.CLIPTokenizer.from_pretrained(str(GOLDEN)).save_pretrained(folder)
    return str(folder)


def _text(key: str) -> str:
    return key if key == "logit_scale" else f"text_encoder.{key}"


@pytest.fixture(scope="session")
def checkpoint(
    config: dict[str, Any],
    official: Callable[[str], dict[str, Tensor]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """The checkpoint of case a or b, as training with many processes saves it."""

    def write(case: str) -> Path:
        path = tmp_path_factory.mktemp("checkpoints") / f"case_{case}.pth"
        state = {f"module.{key}": value for key, value in official(case).items()}
        torch.save({"model": state, "epoch": 9, "config": config[f"case_{case}"]}, path)
        return path

    return write


@pytest.fixture(scope="session")
def folder(
    base: str, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The converted model of case a or b."""
    made: dict[str, Path] = {}

    def make(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp("converted") / case
            convert(checkpoint(case), base, made[case])
        return made[case]

    return make


@pytest.fixture
def model(folder: Callable[[str], Path]) -> Callable[[str], TcClip]:
    return lambda case: load(folder(case))[0]
