"""The classifier as scikit-learn users meet it: conventions, layouts of time series, and refusals."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from dejavid.errors import ConfigError
from dejavid.train import DejaVidClassifier
from dejavid.train.presets import parity_parameters

QUICK = {"n_steps": 4, "epochs": 10, "batch_size": 8, "random_state": 0, "backend": "torch", "device": "cpu"}


def ramps(n=24, seed=0, n_features=2):
    """Rising and falling series of unequal length: no average over time tells them apart."""
    random = np.random.default_rng(seed)
    series, labels = [], []
    for number in range(n):
        length = int(random.integers(5, 15))
        ramp = np.linspace(-1, 1, length)[:, None] * np.ones(n_features)
        rising = number % 2 == 0
        series.append((ramp if rising else ramp[::-1]) + random.normal(scale=0.2, size=(length, n_features)))
        labels.append("rising" if rising else "falling")
    return series, np.array(labels)


@pytest.mark.slow
def test_scikit_learns_own_checks():
    # Enough steps on little data: one of the checks asks for an accuracy.
    settings = {"n_steps": 3, "epochs": 15, "lr": 0.2, "batch_size": 32, "backend": "cpu"}
    model = DejaVidClassifier(**QUICK | settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(model, on_skip=None, on_fail=None)
    failed = [
        (result["check_name"], result["exception"]) for result in results if result["status"] == "failed"
    ]
    assert not failed
    assert len(results) > 40


def test_it_learns_order_and_generalises():
    X, y = ramps()
    model = DejaVidClassifier(**QUICK).fit(X, y)
    assert model.classes_.tolist() == ["falling", "rising"]
    X_test, y_test = ramps(seed=1)
    assert model.score(X_test, y_test) == 1
    probabilities = model.predict_proba(X_test)
    assert probabilities.shape == (24, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (model.classes_[probabilities.argmax(1)] == model.predict(X_test)).all()


def test_it_composes_with_scikit_learn():
    X, y = ramps()
    model = clone(DejaVidClassifier(**QUICK))
    assert model.get_params()["n_steps"] == 4
    assert cross_val_score(model, X, y, cv=3).mean() > 0.9
    scaled = make_pipeline(FunctionTransformer(lambda tses: [tse * 3 for tse in tses]), model)
    assert scaled.fit(X, y).score(X, y) == 1
    search = GridSearchCV(model, {"n_steps": [2, 4]}, cv=2).fit(X, y)
    assert search.best_params_["n_steps"] in (2, 4)


def test_the_same_seed_gives_the_same_probabilities():
    X, y = ramps()
    first, second = (DejaVidClassifier(**QUICK).fit(X, y).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_all_layouts_hold_the_same_series():
    X, y = ramps()
    expected = DejaVidClassifier(**QUICK).fit(X, y).predict_proba(X)
    padded = np.full((len(X), max(map(len, X)), 2), np.nan)  # tslearn's
    for row, tse in zip(padded, X, strict=True):
        row[: len(tse)] = tse
    channels_first = [tse.T for tse in X]  # aeon's
    for layout, series in (("time_first", padded), ("channels_first", channels_first)):
        model = DejaVidClassifier(layout=layout, **QUICK).fit(series, y)
        np.testing.assert_array_equal(model.predict_proba(series), expected)


def test_arrays_of_two_axes_are_univariate_series():
    X, y = ramps(n_features=1)
    flat = np.stack([np.interp(np.linspace(0, 1, 6), np.linspace(0, 1, len(x)), x[:, 0]) for x in X])
    deep = DejaVidClassifier(**QUICK).fit(flat[:, :, None], y).predict_proba(flat[:, :, None])
    model = DejaVidClassifier(**QUICK).fit(flat, y)
    np.testing.assert_array_equal(model.predict_proba(flat), deep)
    assert model.n_features_in_ == 6


def test_the_reference_has_a_preset():
    X, y = ramps(n=30)
    y = np.where(np.arange(30) % 3 == 0, "other", y)
    model = DejaVidClassifier(**parity_parameters() | {"epochs": 2, "backend": "torch"}).fit(X, y)
    assert model.head_.logits_rule == "standardised"
    assert model.head_.inputs.n_features == 2
    assert model.get_params()["lr"] == 0.03


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ([np.ones((3, 2)), np.ones((3, 2))], ["a", "a"], "1 class"),
        ([np.ones((3, 2)), np.ones((3, 4))], ["a", "b"], r"\(3, 4\)"),
        ([np.ones((3, 2)), np.ones((0, 2))], ["a", "b"], r"\(0, 2\)"),
        ([np.ones((3, 2)), np.full((3, 2), np.nan)], ["a", "b"], "NaN"),
        ([np.ones((3, 2)), np.ones((3, 2, 1))], ["a", "b"], r"\(3, 2, 1\)"),
        ([], [], "0 samples"),
    ],
)
def test_bad_series_are_refused(X, y, message):
    with pytest.raises(ConfigError, match=message):
        DejaVidClassifier(**QUICK).fit(X, y)


@pytest.mark.parametrize("option", [{"lr": -1}, {"learn": "nothing"}, {"layout": "rows"}, {"n_steps": 0}])
def test_bad_options_are_refused(option):
    X, y = ramps()
    with pytest.raises(ConfigError):
        DejaVidClassifier(**QUICK | option).fit(X, y)


def test_other_features_than_it_was_fitted_on_are_refused():
    X, y = ramps()
    model = DejaVidClassifier(**QUICK).fit(X, y)
    with pytest.raises(ConfigError, match="expecting 2 features"):
        model.predict([np.ones((4, 3))])
