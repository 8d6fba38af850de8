"""Checkpoints become folders exactly, or not at all; averaged weights; class names and prompts."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dejavid.errors import ConfigError
from dejavid.extract.encoders.tcclip.checkpoints import read_checkpoint
from dejavid.extract.encoders.tcclip.convert import convert, load, read_base
from dejavid.extract.encoders.tcclip.options import ModelOptions
from dejavid.extract.encoders.tcclip.prompts import (
    prompts_of,
    read_class_names,
    template_tokens,
    tokenise,
)

Golden = Callable[[str], dict[str, Tensor]]
Folder = Callable[[str], Path]


@torch.no_grad()
def test_weights_averaged_with_clip(
    checkpoint: Folder, base: str, golden: Golden, frames: Tensor, tmp_path: Path
) -> None:
    expected = golden("case_a_extra")
    done = convert(checkpoint("a"), base, tmp_path / "wise", ensemble=0.7)
    tc, _ = load(done.path)
    logits = tc(frames, golden("case_a")["tokenized_prompts"].long())
    torch.testing.assert_close(logits, expected["logits_wise_0.7"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tc.clip.logit_scale, expected["wise_0.7.logit_scale"], atol=1e-6, rtol=0)
    projection = tc.clip.visual_projection.weight.T
    torch.testing.assert_close(projection, expected["wise_0.7.visual_proj"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["a", "b"])
def test_what_clip_does_not_have_is_not_averaged(
    case: str, checkpoint: Folder, folder: Folder, base: str, tmp_path: Path
) -> None:
    convert(checkpoint(case), base, tmp_path / "wise", ensemble=0.25)
    averaged, tuned = load(tmp_path / "wise")[0].state_dict(), load(folder(case))[0].state_dict()
    clip, _ = read_base(base)
    for name, value in averaged.items():
        if name.startswith("clip."):
            start = clip.state_dict()[name.removeprefix("clip.")]
            start = start.repeat(len(value) // len(start), 1) if value.shape != start.shape else start
            torch.testing.assert_close(value, 0.75 * start + 0.25 * tuned[name])
        else:
            assert torch.equal(value, tuned[name])


def test_the_folder_has_all_there_is_and_loads_the_same(folder: Folder) -> None:
    path = folder("a")
    assert {"model.safetensors", "tcclip.json", "tokenizer.json"} <= {file.name for file in path.iterdir()}
    (first, tokenizer), (second, _) = load(path), load(path)
    assert tokenizer("a photo")["input_ids"] == [49406, 320, 1125, 49407]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert first.options == ModelOptions(
        n_frames=4, n_context=5, merged_per_round=3, merge_slope=0, prompt_levels=(3,)
    )


def test_safetensors_without_a_configuration(
    official: Callable[[str], dict[str, Tensor]], base: str, folder: Folder, tmp_path: Path
) -> None:
    save_file(official("a"), tmp_path / "a.safetensors")
    done = convert(
        tmp_path / "a.safetensors", base, tmp_path / "out", changes={"prompt_levels": [3], "n_frames": 4}
    )
    assert done.options.local_global_bias
    assert done.options.n_prompt_vectors == 4
    ours, theirs = load(done.path)[0].state_dict(), load(folder("a"))[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_clip_alone_is_a_model_of_every_method(base: str, tmp_path: Path) -> None:
    done = {
        method: convert(None, base, tmp_path / method, changes={"method": method, "prompt_levels": [3]})
        for method in ("clip", "vifi_clip", "tcclip")
    }
    assert done["clip"].n_parameters == done["vifi_clip"].n_parameters < done["tcclip"].n_parameters
    for method, converted in done.items():
        assert load(converted.path)[0].options.method == method


class _Node:
    def __init__(self, value: Any) -> None:
        self._val, self._metadata = value, None


class _Container:
    def __init__(self, content: Any) -> None:
        self._content, self._parent = content, None


def test_the_configuration_object_of_released_checkpoints(
    official: Callable[[str], dict[str, Tensor]],
    config: dict[str, Any],
    base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As OmegaConf pickles it, and read where that package does not exist."""
    modules = {name: types.ModuleType(f"omegaconf.{name}") for name in ("dictconfig", "listconfig", "nodes")}
    for module, kind, parent in (
        ("dictconfig", "DictConfig", _Container),
        ("listconfig", "ListConfig", _Container),
        ("nodes", "AnyNode", _Node),
    ):
        stand_in = type(kind, (parent,), {"__module__": f"omegaconf.{module}"})
        setattr(modules[module], kind, stand_in)
    container, listed, node = (
        modules["dictconfig"].DictConfig,
        modules["listconfig"].ListConfig,
        modules["nodes"].AnyNode,
    )
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        for name, module in modules.items():
            patched.setitem(sys.modules, f"omegaconf.{name}", module)
        content = {key: node(value) for key, value in config["case_a"].items()}
        content["prompt_generation_layer_level"] = listed([node(3)])
        state = {f"module.{key}": value for key, value in official("a").items()}
        torch.save({"model": state, "config": container(content)}, tmp_path / "a.pth")
    _, told = read_checkpoint(tmp_path / "a.pth")
    assert told == {**config["case_a"], "prompt_generation_layer_level": [3]}
    assert convert(tmp_path / "a.pth", base, tmp_path / "out").options.prompt_levels == (3,)
    assert "omegaconf" not in sys.modules


class _Danger:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never run",)


def test_no_code_of_a_checkpoint_runs(
    official: Callable[[str], dict[str, Tensor]],
    base: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save({"model": official("a"), "config": _Danger()}, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="safely"):
        convert(tmp_path / "a.pth", base, tmp_path / "out")
    assert "never run" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("image_encoder.transformer.resblocks.1.attn.q_proj.weight", None, "is missing"),
        ("text_encoder.ln_final.bias", None, "is missing"),
        ("image_encoder.transformer.resblocks.3.ln_1.weight", torch.ones(96), "is unknown"),
        ("image_encoder.transformer.resblocks.1.attn.relative", torch.ones(3), "that no TC-CLIP has"),
        (
            "image_encoder.transformer.resblocks.0.attn.local_global_bias_table",
            torch.ones(3, 1, 2),
            "no TC-CLIP",
        ),
        ("optimizer.state", torch.ones(3), "that no TC-CLIP has"),
        ("prompt_learner.ctx", torch.ones(4, 32), "not \\(4, 64\\)"),
    ],
)
def test_checkpoints_that_do_not_fit(
    official: Callable[[str], dict[str, Tensor]],
    config: dict[str, Any],
    base: str,
    tmp_path: Path,
    key: str,
    value: Tensor | None,
    words: str,
) -> None:
    state = {**official("a"), key: value}
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    torch.save({"model": kept, "config": config["case_a"]}, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=words):
        convert(tmp_path / "a.pth", base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arguments_that_are_refused(checkpoint: Folder, folder: Folder, base: str, tmp_path: Path) -> None:
    cases: list[tuple[Path | None, str, Path, dict[str, Any], str]] = [
        (checkpoint("a"), base, folder("a"), {}, "exists already"),
        (checkpoint("a"), base, tmp_path / "x", {"ensemble": 0.0}, "ensemble"),
        (checkpoint("a"), base, tmp_path / "x", {"changes": {"colour": 1}}, "colour"),
        (checkpoint("a"), str(tmp_path), tmp_path / "x", {}, "no CLIP in transformers' layout"),
        (tmp_path / "absent.pth", base, tmp_path / "x", {}, "no such checkpoint"),
    ]
    for path, source, out, keywords, words in cases:
        with pytest.raises(ConfigError, match=words):
            convert(path, source, out, **keywords)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tcclip.json", "{}", "no model of this family"),
        ("tcclip.json", '{"schema": 7}', "schema 7"),
        ("model.safetensors", "text", "no model of this family"),
    ],
)
def test_damaged_folders(base: str, tmp_path: Path, file: str, content: str, words: str) -> None:
    path = convert(None, base, tmp_path / "clip").path
    (path / file).write_text(content)
    with pytest.raises(ConfigError, match=words):
        load(path)
    with pytest.raises(ConfigError, match="no model of this family"):
        load(tmp_path)


def test_prompts_and_their_tokens_are_the_official_ones(
    base: str, golden: Golden, config: dict[str, Any]
) -> None:
    _, tokenizer = read_base(base)
    names = config["class_names"]
    cases = [
        (ModelOptions(), golden("case_a")["tokenized_prompts"]),
        (ModelOptions(n_prompt_vectors=6, context_length=77), golden("case_b")["tokenized_prompts"]),
        (ModelOptions(method="vifi_clip", context_length=77), golden("case_clip")["vifi_tokens"]),
    ]
    for options, expected in cases:
        tokens = tokenise(tokenizer, prompts_of(names, options), options.context_length)
        assert torch.equal(tokens, expected.long())
    assert template_tokens(tokenizer, ModelOptions()).tolist() == [320, 1125, 539, 320]
    assert template_tokens(tokenizer, ModelOptions(n_prompt_vectors=6)).tolist()[4:] == [343, 343]


def test_prompts() -> None:
    names = ["ApplyEyeMakeup", "brush_hair"]
    assert prompts_of(names, ModelOptions()) == ["a photo of a Apply Eye Makeup.", "a photo of a brush hair."]
    assert prompts_of(names, ModelOptions(method="clip")) == ["Apply Eye Makeup", "brush hair"]
    assert prompts_of(names, ModelOptions(method="vifi_clip"))[1] == "a photo of a brush_hair."
    assert prompts_of(names, ModelOptions(split_capitals=False))[0] == "a photo of a ApplyEyeMakeup."
    for pair in (["brush hair", "brush_hair"], ["Run", "run"], ["HighJump", "high jump"]):
        with pytest.raises(ConfigError, match="several classes"):
            prompts_of(pair, ModelOptions())


def test_a_prompt_that_is_too_long(base: str) -> None:
    _, tokenizer = read_base(base)
    with pytest.raises(ConfigError, match="more than the 30"):
        tokenise(tokenizer, ["a photo of a " + "x " * 40], 30)


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(b'\xef\xbb\xbfid,name\r\n0,"Pushing something, then letting go"\r\n1,zumba\r\n')
    assert read_class_names(path).names == ("Pushing something, then letting go", "zumba")
    path = tmp_path / "llm.json"
    path.write_text(json.dumps({"7": "Clap: A person claps.", "2": "Run: A person runs."}))
    found = read_class_names(path)
    assert (found.ids, found.names[1]) == (("7", "2"), "Run: A person runs.")  # the order of the file


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("l.csv", "id,name\n", "names no class"),
        ("l.csv", "number,title\n0,run\n", "no list of classes"),
        ("l.csv", "id,name\n0,run\n1,run\n", "'run' occurs twice"),
        ("l.csv", "id,name\n0,run\n0,walk\n", "'0' occurs twice"),
        ("l.csv", "id,name\n0,\n", "has no name"),
        ("l.csv", "id,name\n0\n", "has no name"),
        ("l.json", '{"0": "run", "0": "walk"}', "'0' occurs twice"),
        ("l.json", '["run"]', "no list of classes"),
        ("l.json", '{"0": 3}', "no list of classes"),
        ("l.json", "{", "no list of classes"),
        ("absent.csv", None, "no list of classes"),
    ],
)
def test_label_files_that_are_wrong(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_class_names(tmp_path / name)
