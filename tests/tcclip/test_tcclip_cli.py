"""The commands: a checkpoint becomes an encoder, and a model is scored on names of classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command
from numbered_videos import write_video


@pytest.fixture
def dejavid(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "240")
    return command


def test_from_a_checkpoint_to_a_table(
    dejavid: Command, checkpoint: Callable[[str], Path], base: str, tmp_path: Path
) -> None:
    code, out, err = dejavid("encoder", "convert", "tc", "--checkpoint", checkpoint("a"), "--base", base)
    assert (code, "tcclip" in out) == (0, True), err
    for name in ("zumba", "falling"):
        write_video(tmp_path / f"{name}.mp4", 6, size=(96, 80))
    code, out, err = dejavid("encoder", "context", "tcclip:tc", "zumba.mp4", "context.png")
    assert (code, (tmp_path / "context.png").read_bytes()[:4]) == (0, b"\x89PNG"), err
    rows = ["video_id,path,label,split", "z,zumba.mp4,zumba,val", "f,falling.mp4,falling down,test"]
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "c.csv").write_text("id,name\n0,zumba\n1,falling down\n")
    settings = ["--set", "manifest.path=m.csv", "--set", "run.dir=out", "--set", "extract.workers=0", "-q"]
    scored = ["evaluate", "--zero-shot", "tcclip:tc", "--classes", "c.csv", *settings]
    code, out, err = dejavid(*scored)
    assert code == 0, err
    assert "/ 1" in out
    found = json.loads((tmp_path / "out" / "zero_shot.json").read_text())
    assert found["base"][0]["summary"]["n_scored"] == 1
    code, out, err = dejavid(
        *scored, "--novel-classes", "c.csv", "--novel-on", "m.csv@test", "--clips", 1, "--three-crops"
    )
    assert (code, "harmonic mean" in out) == (0, True), err
    cases: list[tuple[list[str], int, str]] = [
        (["encoder", "context", "toy:0", "zumba.mp4", "x.png"], 3, "no context tokens"),
        (["encoder", "context", "tcclip:tc", "absent.mp4", "x.png"], 4, "no such file"),
        ([*scored, "--on", "m.csv@none"], 3, "no video is in split 'none'"),
        ([*scored, "--classes", "c.csv"], 3, "2 files of classes for 1 lists"),
        (["evaluate", "--classes", "c.csv", *settings], 2, "need --zero-shot"),
        (["evaluate", "--zero-shot", "tcclip:tc", *settings], 3, "--classes"),
        (
            ["evaluate", "--zero-shot", "tcclip:no", "--classes", "c.csv", *settings],
            3,
            "no model of this family",
        ),
    ]
    for arguments, expected, words in cases:
        code, out, err = dejavid(*arguments)
        assert (code, words in err) == (expected, True), err


def test_options_on_the_command_line(dejavid: Command, base: str, tmp_path: Path) -> None:
    made = ["--option", "method=tcclip", "--option", "prompt_levels=[2, 3]", "--option", "n_frames=8"]
    code, _, err = dejavid("encoder", "convert", "new", "--base", base, *made)
    assert code == 0, err
    options = json.loads((tmp_path / "new" / "tcclip.json").read_text())["options"]
    assert (options["method"], options["prompt_levels"], options["n_frames"]) == ("tcclip", [2, 3], 8)
    for item, words in (
        ("n_frames=many", "n_frames = 'many' is no int"),
        ("n_frames=true", "is no int"),
        ("prompt_levels=3", "is no tuple"),
        ("colour=1", "no such option: colour"),
        ("n_frames", "not NAME=VALUE"),
        ("template=[", "no YAML"),
    ):
        code, _, err = dejavid("encoder", "convert", "other", "--base", base, "--option", item)
        assert (code, words in err) == (3, True), err
    assert not (tmp_path / "other").exists()
