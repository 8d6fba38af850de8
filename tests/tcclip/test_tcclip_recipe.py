"""What training of TC-CLIP is made of: schedule, groups, blending, augmentation, few shots."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numbered_videos import draw_number, write_video
from torch import Tensor

from dejavid.config import TcclipSection
from dejavid.errors import ConfigError
from dejavid.extract.encoders.base import ClipSpec
from dejavid.extract.encoders.tcclip.model import TcClip
from dejavid.extract.encoders.tcclip.training.augment import random_crop, training_recipe
from dejavid.extract.encoders.tcclip.training.blend import blend, smoothed
from dejavid.extract.encoders.tcclip.training.protocols import PROTOCOLS, resolve_protocol
from dejavid.extract.encoders.tcclip.training.schedule import (
    freeze,
    last_index,
    learning_rate,
    make_optimizer,
)
from dejavid.extract.encoders.tcclip.training.videos import draw_seed, draw_shots
from dejavid.extract.worker import Chunk, DecodeSettings, Job, decode_events

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tcclip" / "lr_schedule.json").read_text())
OURS = {"base2novel": "base_to_novel"}
SPEC = ClipSpec(4, 56, 56, short_side=64)


@pytest.mark.parametrize("name", GOLDEN)
def test_rates_are_the_published_ones(name: str) -> None:
    golden, protocol = GOLDEN[name], PROTOCOLS[OURS.get(name, name)]
    told = (protocol.epochs, protocol.warmup_epochs, protocol.lr, protocol.lr_min)
    assert told == tuple(golden[key] for key in ("epochs", "warmup_epochs", "lr", "lr_min"))
    n_iterations, n_accumulated = golden["n_iter"], golden["acc"]
    n_steps = n_iterations // n_accumulated
    assert golden["optimizer_steps"] == protocol.epochs * n_steps
    for factor, key in ((1, "lr_used_at_each_step_group0"), (10, "lr_used_group1")):
        for number, expected in enumerate(golden[key]):
            epoch, step = divmod(number, n_steps)
            index = last_index(epoch, step, n_accumulated=n_accumulated, n_iterations=n_iterations)
            rate = 0.0
            if index is not None:
                rate = learning_rate(
                    index,
                    n_iterations,
                    epochs=protocol.epochs,
                    warmup_epochs=protocol.warmup_epochs,
                    peak=factor * protocol.lr,
                    lowest=protocol.lr_min,
                )
            assert rate == pytest.approx(expected, rel=1e-6)


def test_keys_replace_those_of_the_protocol() -> None:
    protocol = resolve_protocol(TcclipSection(protocol="few_shot", shots=2, lr=1e-4))
    assert protocol == replace(PROTOCOLS["few_shot"], shots=2, lr=1e-4)
    with pytest.raises(ConfigError, match="lr_min = 1 is above lr"):
        resolve_protocol(TcclipSection(lr_min=1.0))
    with pytest.raises(ConfigError, match="5 epochs of warm-up in 3"):
        resolve_protocol(TcclipSection(epochs=3))


def groups_of(model: TcClip, **options: Any) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, **options).param_groups
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]


def test_three_groups(model: Callable[[str], TcClip]) -> None:
    tc = model("a").train()
    golden = GOLDEN["zero_shot"]
    optimizer = make_optimizer(tc, lr=8e-6, lr_10x=True, weight_decay=1e-3)
    assert [group["peak"] for group in optimizer.param_groups] == pytest.approx([8e-6, 8e-5, 8e-5])
    for group in optimizer.param_groups:
        assert group["weight_decay"] == golden["groups"][0]["weight_decay"]
        assert (list(group["betas"]), group["eps"]) == (golden["betas"], golden["eps"])
    rest, vectors, layers = groups_of(tc, lr=1.0, lr_10x=True, weight_decay=0.0)
    assert vectors == {"prompt_vectors"}
    assert layers == {name for name, _ in tc.named_parameters() if name.startswith("prompt_layers.")}
    everything = {name for name, _ in tc.named_parameters()}
    assert everything - rest - vectors - layers == {"clip.text_model.embeddings.token_embedding.weight"}
    assert {"clip.logit_scale", "local_global_bias.0"} <= rest
    alike = make_optimizer(tc, lr=2.0, lr_10x=False, weight_decay=0.0)
    assert [group["peak"] for group in alike.param_groups] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("what", "image", "text"),
    [("nothing", True, True), ("image", False, True), ("text", True, False), ("backbone", False, False)],
)
def test_what_is_frozen(model: Callable[[str], TcClip], what: Any, image: bool, text: bool) -> None:
    tc = model("a")
    freeze(tc, what)
    trained = {name: parameter.requires_grad for name, parameter in tc.named_parameters()}
    for name in (
        "clip.visual_projection.weight",
        "local_global_bias.1",
        "clip.vision_model.pre_layrnorm.bias",
    ):
        assert trained[name] is image, name
    for name in ("clip.text_projection.weight", "clip.text_model.final_layer_norm.bias"):
        assert trained[name] is text, name
    for name in ("clip.logit_scale", "prompt_vectors", "prompt_layers.0.layer_norm_context.bias"):
        assert trained[name], name


def test_blending_is_the_published_one(config: dict[str, Any]) -> None:
    pixels = torch.arange(3 * 2 * 3 * 8 * 8, dtype=torch.float32).view(3, 2, 3, 8, 8)
    targets = smoothed(torch.tensor([0, 3, 4]), 5, 0.1)
    for golden in config["blending"]:
        mixed, mixture = blend(pixels, targets, golden["seed"])
        torch.testing.assert_close(mixture, torch.tensor(golden["labels"]), atol=1e-6, rtol=0)
        assert float(mixed.double().sum()) == pytest.approx(golden["sum"], rel=1e-7)
        assert int((mixed != pixels).sum()) == golden["changed_pixels"]
        # CutMix moves pixels, Mixup makes new ones.
        assert bool(torch.isin(mixed, pixels).all()) is (golden["branch"] == "cutmix")


@pytest.mark.parametrize("seed", range(30))
def test_a_target_is_the_share_of_its_pixels(seed: int) -> None:
    """Of videos that are one number each, the mean pixel tells the shares."""
    pixels = torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1, 1).expand(3, 2, 3, 16, 12)
    targets = smoothed(torch.arange(3), 3, 0.0)
    before = torch.get_rng_state()
    mixed, mixture = blend(pixels, targets, seed)
    torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), mixture @ torch.tensor([1.0, 10.0, 100.0]))
    torch.testing.assert_close(mixture.sum(1), torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)
    again, _ = blend(pixels, targets, seed)
    assert torch.equal(again, mixed)


def test_smoothed_targets() -> None:
    torch.testing.assert_close(
        smoothed(torch.tensor([2]), 4, 0.1), torch.tensor([[0.025, 0.025, 0.925, 0.025]])
    )


def test_crops_have_the_published_sides_and_places() -> None:
    random = np.random.RandomState(0)
    seen = set()
    for _ in range(2000):
        rows, columns = random_crop(256, 340, random)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        sides = [256, 224, 192, 168]
        assert abs(sides.index(height) - sides.index(width)) <= 1
        down, right = (256 - height) // 4, (340 - width) // 4
        places = [(0, 0), (0, 4 * right), (4 * down, 0), (4 * down, 4 * right), (2 * down, 2 * right)]
        assert (rows.start, columns.start) in places
        seen.add((height, width))
    assert len(seen) == 10


def read_clip(path: Path, seed: int, *, flips: bool = True) -> Tensor:
    """The pixels of a training clip as they come from the decoder's process."""
    job = Job("v", path, recipe=training_recipe(SPEC, seed, flips=flips))
    settings = DecodeSettings(training_recipe(SPEC, 0, flips=False), "pyav", 12.0, 10.0)
    chunks = [event for event in decode_events(job, settings) if isinstance(event, Chunk)]
    return torch.from_numpy(np.concatenate([chunk.pixels for chunk in chunks]))


def test_a_training_clip_is_a_function_of_its_seed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 20, size=(96, 80))
    clips = [read_clip(path, seed) for seed in range(6)]
    assert all(clip.shape == (4, 56, 56, 3) and clip.dtype == torch.uint8 for clip in clips)
    assert all(torch.equal(clip, read_clip(path, seed)) for seed, clip in enumerate(clips))
    assert not any(torch.equal(clips[0], clip) for clip in clips[1:])


def test_colours_change_alone_and_only_in_their_share_of_the_videos(tmp_path: Path) -> None:
    """Of a video of one colour, crops and mirrors show nothing: what differs is the colour."""
    colour = np.array([200, 120, 60], np.uint8)
    path = write_video(tmp_path / "v.mp4", 8, size=(96, 80), frame=lambda _: np.tile(colour, (80, 96, 1)))
    grey = unchanged = changing = 0
    n = 150
    for seed in range(n):
        means = read_clip(path, seed).float().mean((1, 2))
        grey += bool((means.amax(1) - means.amin(1) < 1).all())
        unchanged += bool(((means - torch.tensor(colour)).abs() < 4).all())
        changing += bool((means.amax(0) - means.amin(0)).max() > 2)
    # A fifth of the videos each; five deviations of a binomial are 24.
    assert abs(grey - n / 5) < 24
    assert abs(unchanged - n / 5 * 0.8) < 24
    # The colours of a video's frames are drawn one by one.
    assert abs(changing - n * 0.8) < 24


def test_mirrored_half_of_the_time_unless_left_and_right_matter(tmp_path: Path) -> None:
    frame = draw_number(0, 96, 80)
    frame[:, 48:] = 255
    path = write_video(tmp_path / "v.mp4", 8, size=(96, 80), frame=lambda _: frame)

    def is_mirrored(seed: int, *, flips: bool) -> bool:
        clip = read_clip(path, seed, flips=flips).float()
        return bool(clip[:, :, :8].mean() > clip[:, :, -8:].mean())

    mirrored = sum(is_mirrored(seed, flips=True) for seed in range(60))
    assert 12 < mirrored < 48
    assert not any(is_mirrored(seed, flips=False) for seed in range(60))


def test_shots() -> None:
    targets = np.array([0, 1, 0, 2, 0, 1, 0, 1])
    kept = draw_shots(targets, 2, seed=3)
    assert sorted(targets[kept].tolist()) == [0, 0, 1, 1, 2]
    assert kept.tolist() == sorted(kept.tolist())
    assert draw_shots(targets, 2, seed=3).tolist() == kept.tolist()
    assert any(draw_shots(targets, 2, seed=s).tolist() != kept.tolist() for s in range(9))
    assert draw_shots(targets, 99, seed=0).tolist() == list(range(8))


def test_seeds_differ_wherever_their_facts_do() -> None:
    facts = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (7, 3, 2), (7, 3, 2, 0), (7, 2, 3)]
    assert len({draw_seed(*fact) for fact in facts}) == len(facts)
