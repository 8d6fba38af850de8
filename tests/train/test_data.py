"""Where training TSEs are kept must not show in what is trained; and the input layer."""

import numpy as np
import pytest
import torch

from dejavid.config import TrainSection
from dejavid.errors import ConfigError
from dejavid.store import create_store, open_store
from dejavid.train import DejaVidHead, fit_centroids, train_head
from dejavid.train import data as data_module
from dejavid.train.data import PackedSamples, StoredSamples, load_samples
from dejavid.train.inputs import fit_inputs, relative_time

CPU = torch.device("cpu")


@pytest.fixture(params=["float16", "bfloat16", "float32"])
def store(request, tmp_path):
    random = np.random.default_rng(0)
    made = create_store(tmp_path / "store", feature_dim=4, fingerprint_facts={}, dtype=request.param)
    with made.writer() as writer:
        for number in range(30):
            length = int(random.integers(1, 7))
            values = random.normal(size=(length, 4)).astype(np.float32) + number % 3
            times = np.arange(length, dtype=np.float64)
            writer.append(
                f"v{number:02d}",
                values,
                start_s=times,
                end_s=times + 1,
                n_frames=length,
                status="ok",
                extras=None,
            )
    return open_store(tmp_path / "store")


def test_streaming_trains_to_the_bits_of_resident_data(store):
    ids, labels = store.ids(), torch.arange(30) % 3
    options = TrainSection(epochs=2, batch_size=7, device="cpu", backend="torch")
    results = {}
    for mode in ("device", "memory", "stream"):
        samples = load_samples(store, ids, labels, device=CPU, data=mode)
        head = fit_centroids(*samples.take(torch.arange(30)), labels, class_names="abc", length=3).head(
            logits="per_step"
        )
        report = train_head(head, samples, options=options)
        results[mode] = [*report.losses, *head.centroids.detach().flatten().tolist()]
        assert samples.n_features == 4
    assert results["stream"] == results["memory"] == results["device"]


def test_the_stored_values_arrive(store):
    samples = load_samples(store, store.ids(), torch.zeros(30), device=CPU, data="stream")
    values, offsets = samples.take(torch.tensor([4, 2]))
    expected = np.concatenate([store.get("v04").values, store.get("v02").values])
    np.testing.assert_array_equal(values.float(), expected)
    assert offsets.tolist() == [0, len(store.get("v04").values), len(expected)]
    part = samples.subset(torch.tensor([2, 4, 6]))
    np.testing.assert_array_equal(part.take(torch.tensor([1, 0]))[0].float(), expected)


def test_the_mode_follows_the_free_memory(store, monkeypatch):
    chosen = load_samples(store, store.ids(), torch.zeros(30), device=CPU)
    assert isinstance(chosen, PackedSamples)
    assert "memory" in chosen.mode
    monkeypatch.setattr(data_module, "_MEMORY_SHARE", 0.0)
    chosen = load_samples(store, store.ids(), torch.zeros(30), device=CPU)
    assert isinstance(chosen, StoredSamples)
    assert "streamed" in chosen.mode


def test_impossible_loads_are_refused(store):
    with pytest.raises(ConfigError, match="no videos"):
        load_samples(store, [], torch.zeros(0), device=CPU)
    with pytest.raises(ConfigError, match="data='disk'"):
        load_samples(store, store.ids(), torch.zeros(30), device=CPU, data="disk")


def test_relative_time_runs_from_0_to_1_in_every_tse():
    assert relative_time(torch.tensor([0, 3, 4, 6])).tolist() == [0, 0.5, 1, 0.5, 0, 1]


def test_the_input_layer_standardises_and_adds_the_time():
    random = np.random.default_rng(0)
    values = torch.tensor(random.normal(3, [1, 10, 0, 5], (500, 4)), dtype=torch.float32)
    offsets = torch.arange(0, 501, 20)
    layer = fit_inputs(values, offsets, features="0:3", standardise=True, position=0.5)
    steps = layer(values, offsets)
    assert steps.shape == (500, 4)
    np.testing.assert_allclose(steps[:, :2].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(steps[:, :2].std(0), 1, atol=2e-3)
    # A constant feature becomes 0, and its scale leaves room for other values later.
    np.testing.assert_allclose(steps[:, 2], 0, atol=1e-6)
    # Half of what the two features that vary deviate by together.
    assert steps[:, 3].std(correction=0).item() == pytest.approx(0.5 * 2, rel=1e-4)
    assert steps[:20, 3].diff().min() > 0


def test_half_precision_values_are_standardised_in_single():
    values = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 3 + 50
    layer = fit_inputs(values.half(), torch.tensor([0, 100]), standardise=True)
    result = layer(values.half(), torch.tensor([0, 100]))
    assert result.dtype == torch.float32
    expected = (values.half().double() - values.half().double().mean(0)) / values.half().double().std(
        0, correction=0
    )
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_a_saved_head_keeps_its_input_layer(tmp_path):
    values = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    offsets = torch.arange(0, 61, 6)
    found = fit_centroids(
        values,
        offsets,
        torch.arange(10) % 2,
        class_names="ab",
        features="1:5",
        standardise=True,
        position=0.3,
    )
    head = found.head(logits="per_step").eval()
    head.save(tmp_path)
    loaded = DejaVidHead.load(tmp_path)
    assert loaded.centroids.shape == (2, 8, 5)
    assert torch.equal(loaded(values, offsets), head(values, offsets))
    with pytest.raises(ConfigError, match="4 features, the head was made for 5"):
        loaded(values[:, :4], offsets)


@pytest.mark.parametrize("features", ["0:9", "3:2", "a:b", "2", "-1:3"])
def test_impossible_columns_are_refused(features):
    with pytest.raises(ConfigError, match="columns"):
        fit_inputs(torch.ones(4, 5), torch.tensor([0, 4]), features=features)
