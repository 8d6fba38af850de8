"""What the kernels refuse, and that they say why before anything is computed."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

from dejavid.errors import ConfigError, MissingDependencyError
from dejavid.kernels import available_backends, dispatch, warping_path, weighted_dtw

BACKENDS = ["auto", "reference", "torch", "cpu"]


@pytest.fixture
def arguments(make_case):
    case = make_case(0, [3, 2, 4], 2, 3, 5)
    return {k: getattr(case, k) for k in ("values", "offsets", "centroids", "log_weights")}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_bad_value_names_its_sample(arguments, backend, bad, dtype):
    arguments["values"][4, 2] = bad
    arguments["values"] = arguments["values"].to(dtype)
    for function in (weighted_dtw, warping_path):
        with pytest.raises(ConfigError, match="sample 1 holds NaN or infinite"):
            function(**arguments, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["centroids", "log_weights"])
def test_a_bad_parameter_never_becomes_a_number(arguments, backend, name):
    arguments[name][1, 2, 3] = float("nan")
    for function in (weighted_dtw, warping_path):
        with pytest.raises(ConfigError, match="to class 1 is nan"):
            function(**arguments, backend=backend)
    good = {k: torch.zeros(2, 3, 5) for k in ("centroids", "log_weights")}
    frozen = {f"path_{k}": arguments[k] for k in good}
    with pytest.raises(ConfigError, match="to class 1 is nan") as error:
        weighted_dtw(arguments["values"], arguments["offsets"], **good, **frozen, backend=backend)
    assert "path_centroids" in error.value.where


def test_overflowing_weights_are_refused(arguments):
    arguments["log_weights"][0, 0, 0] = 89.0
    with pytest.raises(ConfigError, match="is inf"):
        weighted_dtw(**arguments)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("offsets", [0, 3, 3, 9], "sample 1 has 0 rows"),
        ("offsets", [0, 5, 3, 9], "sample 1 has -2 rows"),
        ("offsets", [1, 3, 9], "do not span"),
        ("offsets", [0, 3, 8], "do not span"),
        ("offsets", [0], "do not span"),
        ("offsets", [0.0, 3.0, 9.0], "dtype torch.float32"),
        ("offsets", [[0, 9]], "shape"),
        ("values", torch.zeros(9, 5, dtype=torch.int64), "dtype torch.int64"),
        ("values", torch.zeros(9), "shape"),
        ("values", torch.zeros(9, 4), "4 features"),
        ("centroids", torch.zeros(2, 3, 5, device="meta"), "centroids on meta"),
        ("values", torch.zeros(9, 5, requires_grad=True), "require a gradient"),
        ("centroids", torch.zeros(2, 3, 4), r"\(2, 3, 4\)"),
        ("centroids", torch.zeros(2, 3, 5, dtype=torch.float64), "float64"),
        ("centroids", torch.zeros(3, 5), "shape"),
        ("step_pattern", "diagonal", "unknown step pattern"),
        ("backend", "gpu", "unknown backend"),
        ("path_centroids", torch.zeros(2, 3, 5), "belong together"),
    ],
)
def test_wrong_arguments_are_refused(arguments, name, value, says):
    with pytest.raises(ConfigError, match=says):
        weighted_dtw(**{**arguments, name: value})


def test_frozen_and_live_parameters_must_have_one_shape(arguments):
    other = torch.zeros(2, 4, 5)
    with pytest.raises(ConfigError, match=r"path_centroids are \(2, 4, 5\)"):
        weighted_dtw(**arguments, path_centroids=other, path_log_weights=other)


def test_no_class_is_refused(arguments):
    empty = torch.zeros(0, 3, 5)
    with pytest.raises(ConfigError, match="empty"):
        weighted_dtw(arguments["values"], arguments["offsets"], empty, empty)


def test_arrays_and_half_precision_are_accepted(arguments):
    expected = weighted_dtw(**arguments)
    arrays = {k: x.numpy() for k, x in arguments.items()}
    torch.testing.assert_close(weighted_dtw(**arrays), expected, rtol=0, atol=0)
    arguments["values"] = arguments["values"].half()
    rounded = weighted_dtw(**{**arguments, "values": arguments["values"].float()})
    torch.testing.assert_close(weighted_dtw(**arguments), rounded, rtol=0, atol=0)
    halves = {
        **arguments,
        "centroids": arguments["centroids"].bfloat16(),
        "log_weights": torch.zeros(2, 3, 5).bfloat16(),
    }
    assert weighted_dtw(**halves).dtype == torch.float32


@pytest.mark.parametrize("name", ["values", "centroids", "log_weights"])
def test_gaps_in_memory_are_refused(arguments, name):
    wide = torch.cat([arguments[name], arguments[name]], -1)
    n = arguments[name].shape[-1]
    with pytest.raises(ConfigError, match=f"{name} is not contiguous") as error:
        weighted_dtw(**{**arguments, name: wide[..., :n]})
    assert f"{name}.contiguous()" in error.value.fix
    with pytest.raises(ConfigError, match="not contiguous"):
        weighted_dtw(**{**arguments, name: np.asfortranarray(arguments[name].numpy())})


def test_auto_says_once_what_it_chose(arguments, caplog):
    dispatch._choose.cache_clear()
    with caplog.at_level(logging.INFO, logger="dejavid.kernels.dispatch"):
        for _ in range(2):
            weighted_dtw(**arguments)
        double = {k: arguments[k].double() for k in ("centroids", "log_weights")}
        weighted_dtw(**{**arguments, **double})
    assert [r.message.split("(")[0] for r in caplog.records] == [
        "weighted DTW runs on backend 'cpu' ",
        "weighted DTW runs on backend 'torch' ",
    ]


def test_backends_that_cannot_run_say_what_is_missing(arguments):
    state = available_backends()
    assert list(state) == ["reference", "torch", "cpu", "cuda", "cuda_half"]
    if state["cuda"].startswith("usable"):
        with pytest.raises(ConfigError, match="got tensors on cpu"):
            weighted_dtw(**arguments, backend="cuda")
    else:
        with pytest.raises(MissingDependencyError, match="not usable") as error:
            weighted_dtw(**arguments, backend="cuda")
        assert "dejavid[gpu]" in error.value.fix


def test_float32_backends_refuse_double_parameters(arguments):
    double = {k: arguments[k].double() for k in ("centroids", "log_weights")}
    with pytest.raises(ConfigError, match="computes in float32"):
        weighted_dtw(**{**arguments, **double}, backend="cpu")


def test_importing_the_kernels_imports_no_compiler():
    code = (
        "import sys, dejavid.kernels; sys.exit(any(m in sys.modules for m in ('numba', 'llvmlite', 'cupy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
