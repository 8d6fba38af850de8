"""Merging: what must hold for any seeds, and the recorded rounds of the official implementation."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dejavid.extract.encoders.tcclip.merging import (
    group,
    group_means,
    merge_round,
    merge_schedule,
    per_round,
)
from dejavid.extract.encoders.tcclip.model import TcClip
from dejavid.extract.encoders.tcclip.vision import contextualise


def test_schedules(config: dict[str, Any]) -> None:
    for key, rounds in config["schedule_examples"].items():
        assert merge_schedule(*ast.literal_eval(key)) == rounds


@given(n=st.integers(1, 2000), left=st.integers(1, 300), each=st.integers(0, 400))
def test_a_schedule_ends_with_the_number_asked_for(n: int, left: int, each: int) -> None:
    rounds = merge_schedule(n, left, each)
    for taken in rounds:
        assert 0 < taken <= n // 2
        n -= taken
    assert n <= left if not rounds else n == left


def test_the_slope_of_the_schedule_over_the_layers() -> None:
    assert [per_round(i, 12, 100, 0) for i in range(12)] == [100] * 12
    assert [per_round(i, 5, 100, 1) for i in range(5)] == [0, 50, 100, 150, 200]
    assert [per_round(i, 5, 100, -1) for i in range(5)] == [200, 150, 100, 50, 0]
    assert [per_round(i, 4, 10, 0.5) for i in range(4)] == [5, 8, 11, 15]
    assert per_round(0, 1, 100, 0) == 100


seeds = st.builds(
    lambda seed, videos, n: torch.randn(videos, n, 6, generator=torch.Generator().manual_seed(seed)).double(),
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(1, 60),
)


@settings(deadline=None)
@given(tokens=seeds, share=st.floats(0, 1))
def test_a_round_conserves_sizes_and_sums(tokens: Tensor, share: float) -> None:
    n = tokens.shape[1]
    sizes = torch.arange(1, n + 1).double().expand(len(tokens), n)
    n_merged = int(share * (n // 2))
    merged, new_sizes, place = merge_round(tokens, sizes, n_merged) if n > 1 else (tokens, sizes, None)
    assert merged.shape == (len(tokens), n - n_merged, 6)
    torch.testing.assert_close(new_sizes.sum(1), sizes.sum(1))
    before, after = (tokens * sizes[..., None]).sum(1), (merged * new_sizes[..., None]).sum(1)
    torch.testing.assert_close(after, before)
    if place is not None and n_merged:
        # Odd tokens keep their order at the end, and no even token joins another even one.
        n_odd = n // 2
        assert torch.equal(
            place[:, 1::2], torch.arange(n - n_merged - n_odd, n - n_merged).expand(len(tokens), n_odd)
        )
        survivors = place[:, ::2][place[:, ::2] < n - n_merged - n_odd]
        assert len(survivors) == len(tokens) * (n - n_odd - n_merged)


@settings(deadline=None)
@given(tokens=seeds, left=st.integers(1, 20), each=st.integers(1, 30))
def test_every_seed_belongs_to_one_context_token(tokens: Tensor, left: int, each: int) -> None:
    n = tokens.shape[1]
    rounds = merge_schedule(n, left, each)
    groups = group(tokens, rounds)
    k = n - sum(rounds)
    assert k == min(n, left)
    for row in groups:
        assert set(row.tolist()) == set(range(k))  # none is empty, and each seed has exactly one
    means, sizes = group_means(tokens, groups, k)
    torch.testing.assert_close(sizes.sum(1), torch.full((len(tokens),), float(n)).double())
    torch.testing.assert_close((means * sizes[..., None]).sum(1), tokens.sum(1))
    if n <= left:
        assert torch.equal(means, tokens)


def test_the_most_similar_pair_is_merged_first() -> None:
    #                 even 0      odd 1       even 2      odd 3
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.1, 2.0]]])
    merged, sizes, place = merge_round(tokens, torch.tensor([[1.0, 1.0, 3.0, 1.0]]), 1)
    assert place.tolist() == [[0, 1, 2, 2]]  # 2 joins 3; 0 survives, then the odd ones
    assert sizes.tolist() == [[1.0, 1.0, 4.0]]
    torch.testing.assert_close(merged[0, 2], torch.tensor([0.025, 1.25]))


@torch.no_grad()
def test_recorded_rounds(
    model: Callable[[str], TcClip], golden: Callable[[str], dict[str, Tensor]], frames: Tensor
) -> None:
    tc, expected = model("a"), golden("case_a")
    layers = contextualise(tc.clip.vision_model, tuple(tc.local_global_bias), frames, tc.options)
    for i, layer in enumerate(layers):
        own = layer.frames.unflatten(1, (4, 17))
        tokens = torch.stack(
            [own[:, t].gather(1, 1 + layer.seeds[:, t, :, None].expand(-1, -1, 96)) for t in range(4)], 1
        )
        tokens = tokens.flatten(1, 2)
        sizes = torch.ones(tokens.shape[:2])
        for number, n_merged in enumerate([3, 3, 3, 2]):
            tokens, sizes, _ = merge_round(tokens, sizes, n_merged)
            assert torch.equal(sizes, expected[f"vision.{i}.round{number}.sizes"])
            torch.testing.assert_close(
                tokens, expected[f"vision.{i}.round{number}.tokens"], atol=1e-5, rtol=0
            )


def test_gradients_reach_every_seed_through_the_means() -> None:
    tokens = torch.randn(2, 12, 4, dtype=torch.float64, requires_grad=True)
    rounds = merge_schedule(12, 3, 4)
    groups = group(tokens, rounds)
    assert torch.autograd.gradcheck(lambda t: group_means(t, groups, 3)[0], (tokens,))


def test_half_precision_seeds_are_matched_in_float32() -> None:
    tokens = torch.randn(1, 40, 16).bfloat16()
    rounds = merge_schedule(40, 8, 10)
    assert torch.equal(group(tokens, rounds), group(tokens.float(), rounds))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(group(tokens, rounds), group(tokens.float(), rounds))
    assert group_means(tokens, group(tokens, rounds), 8)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_schedules_leave_the_seeds_as_they_are(dtype: torch.dtype) -> None:
    tokens = torch.randn(2, 5, 3, dtype=dtype)
    assert torch.equal(group(tokens, []), torch.arange(5).expand(2, 5))
