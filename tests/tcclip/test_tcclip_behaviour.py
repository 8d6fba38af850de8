"""What must hold for any weights: sizes, permutations, degenerate inputs, learning; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dejavid.errors import ConfigError
from dejavid.extract.encoders.tcclip.convert import load, read_base
from dejavid.extract.encoders.tcclip.model import TcClip, build_clip
from dejavid.extract.encoders.tcclip.options import ModelOptions, from_official
from dejavid.extract.encoders.tcclip.prompts import prompts_of, template_tokens, tokenise
from dejavid.extract.encoders.tcclip.text import finish

SMALL = ModelOptions(n_frames=4, n_context=5, merged_per_round=3, prompt_levels=(3,))
Make = Callable[..., TcClip]


@pytest.fixture
def make(base: str) -> Make:
    def new(**options: Any) -> TcClip:
        clip, tokenizer = read_base(base)
        torch.manual_seed(0)
        chosen = replace(SMALL, **options)
        tc = TcClip(clip, chosen)
        tc.initialise(template_tokens(tokenizer, chosen))
        return tc.eval()

    return new


@pytest.fixture(scope="session")
def prompts(base: str, config: dict[str, Any]) -> Tensor:
    _, tokenizer = read_base(base)
    return tokenise(tokenizer, prompts_of(config["class_names"], SMALL), 30)


@torch.no_grad()
def test_permuted_classes_and_videos_permute_the_logits(make: Make, prompts: Tensor, frames: Tensor) -> None:
    tc = make()
    logits = tc(frames, prompts)
    torch.testing.assert_close(tc(frames, prompts[[3, 0, 4, 1, 2]]), logits[:, [3, 0, 4, 1, 2]])
    torch.testing.assert_close(tc(frames.flip(0), prompts), logits.flip(0))
    torch.testing.assert_close(tc(frames[:1], prompts[2:3]), logits[:1, 2:3])  # alone as in company


@torch.no_grad()
@pytest.mark.parametrize("n_frames", [1, 3, 7])
def test_any_number_of_frames(make: Make, prompts: Tensor, frames: Tensor, n_frames: int) -> None:
    tc = make()
    video = tc.encode_video(frames[:, :1].repeat(1, n_frames, 1, 1, 1))
    assert video.frames.shape == (2, n_frames, 64)
    assert video.context is not None
    assert video.context.shape == (2, 1, min(5, 4 * n_frames), 64)
    assert tc.logits(video, tc.encode_prompts(prompts)).isfinite().all()


@torch.no_grad()
def test_more_context_tokens_than_seeds(make: Make, prompts: Tensor, frames: Tensor) -> None:
    tc = make(n_context=1000)
    sources = tc.context_sources(frames)
    assert sources.shape == (2, 3, 16, 64)
    assert (sources.sum(-1) == 1).all()  # every seed stays a token of its own
    assert tc(frames, prompts).isfinite().all()


@torch.no_grad()
def test_sources_cover_each_seed_once(make: Make, frames: Tensor) -> None:
    sources = make().context_sources(frames)
    assert sources.shape == (2, 3, 5, 64)
    assert (sources.sum(2) <= 1).all()
    assert (sources.unflatten(-1, (4, 16)).any(2).sum(-1) == 4).all()  # 4 seeds in each frame


@torch.no_grad()
def test_a_new_model_reads_prompts_as_clip_does(make: Make) -> None:
    """The prompt vectors begin as the words they stand for."""
    words = torch.tensor([[49406, 320, 1125, 539, 320, 5853, 269, 49407]])
    learned, fixed = make().encode_prompts(words), make(method="vifi_clip").encode_prompts(words)
    torch.testing.assert_close(learned.hidden, fixed.hidden)


@torch.no_grad()
@pytest.mark.parametrize("method", ["vifi_clip", "clip"])
def test_the_baselines_are_clip_itself(
    make: Make, method: str, frames: Tensor, golden: Callable[[str], dict[str, Tensor]]
) -> None:
    tc, expected = make(method=method), golden("case_clip")
    video = tc.encode_video(frames)
    torch.testing.assert_close(video.frames, expected["image_features"], atol=1e-5, rtol=0)
    ended = finish(tc.clip.text_model, tc.encode_prompts(expected["tokens"].long()))
    text = tc.clip.text_projection(ended)
    torch.testing.assert_close(text, expected["text_features"], atol=1e-5, rtol=0)
    # The first class has a word whose embedding the golden files leave out.
    logits = tc(frames, expected["vifi_tokens"][1:].long())
    torch.testing.assert_close(logits, expected["vifi_logits"][:, 1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"stop_gradient": False, "prompt_levels": (1, 3), "positions": "joint"}]
)
def test_one_batch_can_be_learned(
    make: Make, prompts: Tensor, frames: Tensor, options: dict[str, Any]
) -> None:
    tc = make(**options).train()
    wanted = torch.tensor([1, 4])
    optimiser = torch.optim.AdamW((p for p in tc.parameters() if p.requires_grad), lr=3e-4)
    first = F.cross_entropy(tc(frames, prompts), wanted)
    first.backward()
    assert all(p.grad is not None for p in tc.parameters() if p.requires_grad)
    optimiser.step()
    after_one = F.cross_entropy(tc(frames, prompts), wanted)
    assert after_one < first
    for _ in range(8):
        optimiser.zero_grad()
        F.cross_entropy(tc(frames, prompts), wanted).backward()
        optimiser.step()
    assert tc(frames, prompts).argmax(1).tolist() == [1, 4]
    assert not tc.clip.text_model.embeddings.token_embedding.weight.requires_grad


def test_stop_gradient_decides_who_learns_from_the_prompts(
    make: Make, prompts: Tensor, frames: Tensor
) -> None:
    for stops in (True, False):
        tc = make(stop_gradient=stops)
        video = tc.encode_video(frames)
        assert video.context is not None
        video.context.retain_grad()
        tc.logits(video, tc.encode_prompts(prompts)).sum().backward()
        assert (video.context.grad is None) == stops


@torch.no_grad()
def test_text_layers_before_the_video_run_once(make: Make, prompts: Tensor, frames: Tensor) -> None:
    tc = make(prompt_levels=(2, 3))
    ran: list[int] = []
    tc.clip.text_model.encoder.layers[0].layer_norm1.register_forward_hook(
        lambda _, args, out: ran.append(len(args[0]))
    )
    tc(frames, prompts)
    assert ran == [len(prompts)]  # rows: classes, not classes times videos


@torch.no_grad()
def test_half_precision_gives_nearly_the_same_video(make: Make, frames: Tensor) -> None:
    tc = make()
    full = tc.encode_video(frames).embedding
    half = tc.bfloat16().encode_video(frames.bfloat16()).embedding
    assert half.dtype == torch.bfloat16
    # The choice of seeds may differ, so this is no bound on rounding: only the direction must agree.
    assert (full * half.float()).sum(-1).min() > 0.9


@pytest.mark.parametrize("kind", ["clip", "random"])
def test_prompt_layers_start_as_asked(make: Make, kind: str) -> None:
    tc = make(prompt_layer_init=kind)
    layer, block = tc.prompt_layers[0], tc.clip.text_model.encoder.layers[2]
    same = torch.equal(layer.block.mlp.fc1.weight, block.mlp.fc1.weight)
    assert same == (kind == "clip")
    assert torch.equal(layer.layer_norm_context.weight, block.layer_norm1.weight) == (kind == "clip")
    if kind == "random":
        assert 0.01 < float(layer.block.mlp.fc1.weight.detach().std()) < 0.03


def test_the_released_size_and_its_parameters() -> None:
    """ViT-B/16 of the paper: 127,479,561 trainable parameters, and a forward pass on the CPU."""
    clip = build_clip(
        {
            "projection_dim": 512,
            "text_config": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
            "vision_config": {"patch_size": 16},
        }
    )
    tc = TcClip(clip, ModelOptions()).eval()
    assert sum(p.numel() for p in tc.parameters() if p.requires_grad) == 127_479_561
    assert (
        len([p for p in tc.parameters() if p.requires_grad]) == 375 + 2 * 2 * 13
    )  # q, k, v of the text apart
    tokens = torch.zeros(2, 30, dtype=torch.long)
    tokens[:, :5] = torch.tensor([49406, 320, 1125, 539, 49407])
    with torch.inference_mode():
        logits = tc(torch.randn(1, 2, 3, 224, 224), tokens)
    assert logits.shape == (1, 2)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "xclip"},
        {"n_frames": 0},
        {"seed_share": 0.0},
        {"seed_share": 1.5},
        {"merged_per_round": 0},
        {"merge_slope": 2},
        {"prompt_levels": ()},
        {"prompt_levels": (3, 2)},
        {"prompt_levels": (0,)},
        {"context_length": 5},
        {"positions": "time"},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        ModelOptions(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_levels": (4,)}, "only 3 layers"),
        ({"context_length": 78}, "context_length"),
        ({"method": "clip", "positions": "joint"}, "every frame for itself"),
    ],
)
def test_options_that_this_clip_does_not_allow(make: Make, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**options)


def test_positions_of_each_frame_fix_their_number(folder: Callable[[str], Path], frames: Tensor) -> None:
    tc, _ = load(folder("b"))
    with pytest.raises(ConfigError, match="positions for 4"):
        tc.encode_video(frames[:, :3])
    with pytest.raises(ConfigError, match="positions for 4"):
        load(folder("b"), n_frames=8)
    assert load(folder("a"), n_frames=8)[0].options.n_frames == 8


def test_official_configurations(config: dict[str, Any]) -> None:
    assert from_official(config["case_b"], "x").prompt_levels == (2, 3)
    assert from_official({"prompt_generation_layer_level": [12, 9]}, "x").prompt_levels == (9, 12)
    assert from_official({}, "x") == ModelOptions()
    with pytest.raises(ConfigError, match="ActionCLIP"):
        from_official({"trainer_name": "ActionCLIP"}, "x")
    with pytest.raises(ConfigError, match="ablation"):
        from_official({"vision_model": "VisionTransformer"}, "x")
