"""The model gives the official implementation's outputs, its choices exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dejavid.extract.encoders.tcclip.model import TcClip
from dejavid.extract.encoders.tcclip.text import embed_prompts
from dejavid.extract.encoders.tcclip.vision import contextualise

Golden = Callable[[str], dict[str, Tensor]]
Models = Callable[[str], TcClip]


def _near(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected.float(), atol=atol, rtol=0)


@pytest.mark.parametrize("case", ["a", "b"])
@torch.no_grad()
def test_every_layer_of_the_vision_tower(case: str, model: Models, golden: Golden, frames: Tensor) -> None:
    tc, expected = model(case), golden(f"case_{case}")
    layers = contextualise(tc.clip.vision_model, tuple(tc.local_global_bias), frames, tc.options)
    for i, layer in enumerate(layers):
        _near(layer.scores, expected[f"vision.{i}.cls_attn"])
        assert torch.equal(layer.seeds, expected[f"vision.{i}.seed_index"].long())
        assert torch.equal(layer.sources, expected[f"vision.{i}.source"].bool())
        sizes = layer.sources.sum(-1)
        assert torch.equal(sizes, expected[f"vision.{i}.sizes"].long())
        _near(layer.context, expected[f"vision.{i}.context_pre_ffn"])
        if case == "a":
            _near(layer.frames, expected[f"vision.{i}.after_attention"])
            _near(layer.output, expected[f"vision.{i}.block_output"], 2e-5)
    assert i == 2


@pytest.mark.parametrize("case", ["a", "b"])
@torch.no_grad()
def test_embeddings_and_logits(case: str, model: Models, golden: Golden, frames: Tensor) -> None:
    tc, expected = model(case), golden(f"case_{case}")
    tokens = expected["tokenized_prompts"].long()
    vectors: dict[str, Tensor] = {}
    for j, layer in enumerate(tc.prompt_layers):
        layer.register_forward_hook(
            lambda _, args, out, j=j: vectors.update({f"{j}.ctx_in": args[0], f"{j}.ctx_out": out})
        )
    video = tc.encode_video(frames)
    _near(video.frames, expected["vision.cls_projected"][:, -1])
    levels = [-1] if case == "a" else [0, 1]
    assert video.context is not None
    _near(video.context, expected["vision.context_projected"][:, levels])
    _near(video.embedding, expected["video_embedding"])
    _near(embed_prompts(tc.clip.text_model, tokens, tc.prompt_vectors), expected["prompts_embedded"])
    state = tc.encode_prompts(tokens)
    _near(tc.encode_text(state, video), expected["text_embeddings"])
    for name, value in vectors.items():
        official = expected[f"text.vp{name}"].transpose(1, 2)  # (B, classes, vectors, D)
        _near(value.view(official.shape), official, 2e-5)
    assert len(vectors) == 2 * len(levels)
    _near(tc(frames, tokens), expected["logits"], 1e-4)


@pytest.mark.parametrize("case", ["a", "b"])
def test_loss_and_gradients(
    case: str, model: Models, golden: Golden, frames: Tensor, config: dict[str, Any]
) -> None:
    tc, expected = model(case), golden(f"case_{case}")
    told = golden("case_a_extra") if case == "a" else expected
    loss = F.cross_entropy(tc(frames, expected["tokenized_prompts"].long()), told["target"])
    torch.testing.assert_close(loss, told["loss"], atol=1e-5, rtol=0)
    loss.backward()
    ours = _official_gradients(tc)
    norms = config[f"grad_norms_case_{case}"]
    assert set(ours) == set(norms)
    for name, norm in norms.items():
        found = float(ours[name].double().norm())
        if "k_proj.bias" in name:  # exactly 0 but for rounding
            assert found < 1e-5
        else:
            assert found == pytest.approx(norm, rel=1e-4), name
    for key, value in told.items():
        if key.startswith("grad."):
            torch.testing.assert_close(ours[key[5:]], value, atol=1e-4, rtol=1e-4)


def _official_gradients(tc: TcClip) -> dict[str, Tensor]:
    """Gradients under the official names; thirds of the official in_proj joined."""
    grads: dict[str, Tensor] = {}
    outer = {
        "clip.vision_model.": "image_encoder.",
        "clip.text_model.": "text_encoder.",
        "encoder.layers.": "transformer.resblocks.",
        "prompt_layers.": "text_encoder.prompt_generation_layer.",
        "block.": "",
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.": "conv1.",
        "embeddings.position_embedding.weight": "positional_embedding",
        "pre_layrnorm": "ln_pre",
        "post_layernorm": "ln_post",
        "final_layer_norm": "ln_final",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "layer_norm_context": "ln_1_kv",
        "self_attn": "attn",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "clip.visual_projection.weight": "image_encoder.proj",
        "clip.text_projection.weight": "text_encoder.text_projection",
        "clip.logit_scale": "logit_scale",
        "prompt_vectors": "prompt_learner.ctx",
    }
    for name, parameter in tc.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        grad = parameter.grad
        if name.startswith("local_global_bias."):
            layer = int(name.rpartition(".")[2]) + 1
            grads[f"image_encoder.transformer.resblocks.{layer}.attn.local_global_bias_table"] = grad
            continue
        if "projection" in name:
            grad = grad.T
        for theirs, official in outer.items():
            name = name.replace(theirs, official)
        if name.startswith("text_encoder") and (
            ".q_proj." in name or ".k_proj." in name or ".v_proj." in name
        ):
            stem, kind = name.rsplit(".", 2)[0], name.rpartition(".")[2]
            key = f"{stem}.in_proj_{kind}"
            grads[key] = torch.cat([grads[key], grad]) if key in grads else grad
        else:
            grads[name] = grad
    return {name: _in_official_order(name, grad) for name, grad in grads.items()}


def _in_official_order(name: str, grad: Tensor) -> Tensor:
    """Parameters are listed as key, value, query here, and as query, key, value there."""
    if "in_proj" not in name:
        return grad
    key, value, query = grad.chunk(3)
    return torch.cat([query, key, value])
