"""The configuration: one definition per key, and errors that help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavid.config import Config, describe_yaml, dump_config, load_config, parse_config
from dejavid.errors import ConfigError
from dejavid.fingerprints import differing_keys, fingerprint

PIPELINE = Path(__file__).parents[1] / "pipeline.yaml"


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_pipeline_yaml_is_its_own_description() -> None:
    """Every key stands in pipeline.yaml with its comment, and nothing else does."""
    text = PIPELINE.read_text(encoding="utf-8")
    body = text[text.index("\nrun:") + 1 :]
    assert body == describe_yaml(load_config(PIPELINE))


def test_description_reads_back(tmp_path: Path) -> None:
    config = load_config(None, ["extract.hop=3", "run.dir='a: b # c'", "manifest.root=null"])
    assert load_config(_write(tmp_path, describe_yaml(config))) == config


def test_override_wins_over_file(tmp_path: Path) -> None:
    path = _write(tmp_path, "extract:\n  hop: 4\n  batch_size: 2\n")
    config = load_config(path, ["extract.hop=9"])
    assert (config.extract.hop, config.extract.batch_size) == (9, 2)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["extract.hopp=8"], "did you mean 'extract.hop'"),
        (["extrct.hop=8"], "did you mean 'extract'"),
        (["train.hop=8"], "unknown key 'train.hop'"),
        (["extract.hop=0"], "extract.hop = 0"),
        (["extract.hop=soon"], "extract.hop = 'soon'"),
        (["hop=8"], "not SECTION.KEY=VALUE"),
        (["extract.hop"], "not NAME=VALUE"),
        (["extract.hop=["], "no YAML"),
    ],
)
def test_wrong_keys_and_values(overrides: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert part in caught.value.what
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "extract: 8\n", "\x00"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load_config(_write(tmp_path, text))


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(binary)


def test_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(_write(tmp_path, "")) == Config()


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().extract.hop = 3  # type: ignore[misc]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), _json, max_size=4), st.randoms())
def test_fingerprint_ignores_the_order_of_keys(facts: dict[str, object], random: object) -> None:
    shuffled = dict(sorted(facts.items(), key=lambda _: random.random()))  # type: ignore[attr-defined]
    assert fingerprint(shuffled) == fingerprint(facts)


@given(st.dictionaries(st.text(), _json, max_size=4), st.text(), _json, _json)
def test_fingerprint_sees_every_value(facts: dict[str, object], key: str, a: object, b: object) -> None:
    left, right = {**facts, key: a}, {**facts, key: b}
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (fingerprint(left) == fingerprint(right)) == same
    assert (differing_keys(left, right) == []) == same


def test_differing_keys_name_the_nested_key() -> None:
    assert differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: 2 != 3"]


def test_every_key_can_be_set_from_the_command_line() -> None:
    defaults = dump_config(Config())
    keys = [(section, key) for section, values in defaults.items() for key in values]
    assert len(keys) > 40
    for section, key in keys:
        load_config(None, [f"{section}.{key}={json.dumps(defaults[section][key])}"])
    everything = [f"{section}.{key}={json.dumps(defaults[section][key])}" for section, key in keys]
    assert load_config(None, everything) == Config()


def test_dump_parses_back() -> None:
    config = load_config(None, ["extract.max_steps=33"])
    assert parse_config(dump_config(config), "test") == config
