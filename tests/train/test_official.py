"""Artefacts of the reference: what its own run wrote becomes a head with the same logits."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dejavid.errors import ConfigError, StoreError
from dejavid.kernels import weighted_dtw
from dejavid.train.official import import_official_head, official_class_names

GOLDEN = Path(__file__).parents[1] / "golden" / "dejavid" / "official_format"
FOLDERS = [GOLDEN / "tensor_per_file", GOLDEN / "dict_per_file"]


def reference_logits(centroids, log_weights, values, offsets):
    distances = weighted_dtw(
        values.double(), offsets, centroids.double(), log_weights.double(), backend="reference"
    )
    return -(distances - distances.mean(1, keepdim=True)) / distances.std(1, keepdim=True)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("cuda", [False, True], ids=["cpu", "cuda-tagged"])
def test_a_finished_run_imports_with_its_logits(folder, cuda):
    run = folder / "run"
    expected = {name: torch.tensor(array) for name, array in np.load(run / "expected.npz").items()}
    # The CUDA-tagged files hold the initial centroids and the final log-weights.
    centroids = run / ("mean_series_cuda.pkl" if cuda else "k_feats_rank_0.pkl")
    log_weights = run / ("feat_log_weights_cuda.pt" if cuda else "feat_log_weights_rank_0.pt")
    head = import_official_head(centroids, log_weights, class_names=official_class_names(folder))
    head.backend = "torch"
    final = expected["init_centroids" if cuda else "final_centroids"]
    assert torch.equal(head.centroids.detach(), final)
    assert torch.equal(head.log_weights.detach(), expected["final_log_weights"])
    assert head.class_names == ("3", "7", "20", "41")

    random = np.random.default_rng(0)
    values = torch.tensor(random.normal(size=(30, 10)), dtype=torch.float32)
    offsets = torch.tensor([0, 1, 8, 30])
    wanted = reference_logits(final, expected["final_log_weights"], values, offsets)
    np.testing.assert_allclose(head(values, offsets).detach(), wanted, atol=1e-4)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_centroid_cache_alone_is_an_untrained_head(folder):
    (cache,) = (folder / "run").glob("ms_cached_*_mm0.pkl")
    head = import_official_head(cache)
    expected = np.load(folder / "run" / "expected.npz")["init_centroids"]
    np.testing.assert_array_equal(head.centroids.detach(), expected)
    assert not head.log_weights.any()


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "k_feats.pkl"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(StoreError, match="not plain data or a tensor"):
        import_official_head(path)
    assert not marker.exists()


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="a dict"):
        import_official_head(FOLDERS[0] / "id2labels.pkl")
    with pytest.raises(StoreError):
        import_official_head(tmp_path / "absent.pkl")
    cut = tmp_path / "cut.pkl"
    cut.write_bytes((FOLDERS[0] / "run" / "k_feats_rank_0.pkl").read_bytes()[:700])
    with pytest.raises(StoreError):
        import_official_head(cut)
    torch.save(torch.ones(3, 4, 5), tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"\(3, 4, 5\)"):
        import_official_head(FOLDERS[0] / "run" / "k_feats_rank_0.pkl", tmp_path / "other.pt")
