"""Is frame k really frame k? In every container, for every decoder; and what broken files give."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import (
    cut_file,
    cut_front,
    draw_number,
    read_number,
    rotate_header,
    write_audio,
    write_video,
)

from dejavid.errors import VideoDecodeError
from dejavid.extract.decode import open_video

EVERY = np.arange(10_000)
# What decoders that seek do not get right, and therefore refuse.
REFUSED = {
    "decord": {"h264.ts", "h264.avi", "bframes.avi", "bframes.mp4", "vp8.webm", "edited.mp4"},
    "torchcodec": {"h264.ts", "h264.avi", "bframes.avi", "bframes.mp4", "vp8.webm", "edited.mp4", "av1.mp4"},
}
H264 = {"codec": "libx264", "options": {"bf": "2", "g": "30"}}
FAST = {"container_options": {"movflags": "+faststart"}}
VP9 = {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}
VARIABLE = np.cumsum(np.random.default_rng(0).integers(10, 120, 60)).tolist()

# name -> (how it is made, frames it holds, number of its first frame)
VIDEOS: dict[str, tuple[Callable[[Path], Path], int, int]] = {
    "h264.mp4": (lambda p: write_video(p, **H264), 75, 0),
    "faststart.mp4": (lambda p: write_video(p, **H264, **FAST), 75, 0),
    "h264.mkv": (lambda p: write_video(p, **H264), 75, 0),
    "h264.ts": (lambda p: write_video(p, **H264), 75, 0),
    "h264.avi": (lambda p: write_video(p, **H264), 75, 0),
    "bframes.avi": (lambda p: write_video(p, codec="mpeg4", options={"bf": "2"}), 75, 0),
    "bframes.mp4": (lambda p: write_video(p, codec="mpeg4", options={"bf": "2"}), 75, 0),
    "vp9.webm": (lambda p: write_video(p, 30, **VP9), 30, 0),
    "vp8.webm": (lambda p: write_video(p, 30, codec="libvpx", options={"cpu-used": "8"}), 30, 0),
    "av1.mp4": (lambda p: write_video(p, 30, codec="libsvtav1", options={"preset": "12"}), 30, 0),
    "tenbit.mp4": (
        lambda p: write_video(
            p, 30, codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=none"}
        ),
        30,
        0,
    ),
    "odd.mp4": (lambda p: write_video(p, 30, size=(321, 241), pix_fmt="yuv444p"), 30, 0),
    "single.mp4": (lambda p: write_video(p, 1), 1, 0),
    "variable.mp4": (lambda p: write_video(p, 60, times=VARIABLE), 60, 0),
    "edited.mp4": (lambda p: cut_front(write_video(p.with_name("whole.mp4"), **H264), p, 40), 35, 40),
    "webm-named.avi": (lambda p: write_video(p.with_suffix(".webm"), 30, **VP9).rename(p), 30, 0),
}


def _made(video_dir: Path, name: str) -> Path:
    path = video_dir / name
    return path if path.exists() else VIDEOS[name][0](path)


def _skip_unless_installed(decoder: str) -> None:
    try:
        open_video_module = {"decord": "decord", "torchcodec": "torchcodec.decoders"}.get(decoder, "av")
        importlib.import_module(open_video_module)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"{decoder} is optional and cannot be imported: {str(error).splitlines()[0]}")


@pytest.mark.parametrize("decoder", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("name", VIDEOS)
def test_frame_k_is_frame_k(video_dir: Path, name: str, decoder: str) -> None:
    """Every decoder returns the right frames, or refuses."""
    _skip_unless_installed(decoder)
    _, count, first = VIDEOS[name]
    path = _made(video_dir, name)
    if name in REFUSED.get(decoder, ()):
        with (
            pytest.raises(VideoDecodeError, match="not return the right") as caught,
            open_video(path, decoder),
        ):
            pass
        assert caught.value.fix == "--set extract.decoder=pyav"
        return
    with open_video(path, decoder) as video:
        frames = list(video.stream(EVERY))
    assert [frame.number for frame in frames] == list(range(count))
    assert [read_number(frame.image) for frame in frames] == list(range(first, first + count))
    assert (video.n_frames, video.status, video.meta.n_frames) == (count, "ok", count)


@pytest.mark.parametrize("name", ["h264.mp4", "bframes.avi", "vp9.webm", "edited.mp4", "h264.ts"])
def test_only_wanted_frames_come(video_dir: Path, name: str) -> None:
    _, count, first = VIDEOS[name]
    wanted = np.arange(1, count, 4)
    with open_video(_made(video_dir, name)) as video:
        got = [(frame.number, read_number(frame.image)) for frame in video.stream(wanted)]
    assert got == [(k, first + k) for k in wanted.tolist()]
    assert video.n_frames == count


def test_times_are_those_of_presentation(video_dir: Path) -> None:
    with open_video(_made(video_dir, "variable.mp4")) as video:
        times = [frame.time_s for frame in video.stream(EVERY)]
    expected = (np.array(VARIABLE) - VARIABLE[0]) / 1000
    np.testing.assert_allclose(times, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("h264.mp4", "pyav"),
        ("h264.ts", "pyav"),
        ("bframes.avi", "pyav"),
        ("h264.mp4", "decord"),
        ("h264.mp4", "torchcodec"),
    ],
)
def test_a_span_of_seconds(video_dir: Path, name: str, decoder: str) -> None:
    _skip_unless_installed(decoder)
    with open_video(_made(video_dir, name), decoder, start_s=1.0, end_s=2.0) as video:
        frames = list(video.stream(EVERY))
    assert [read_number(frame.image) for frame in frames] == list(range(25, 50))
    assert [frame.number for frame in frames] == list(range(25))
    assert (video.meta.n_frames, video.n_frames, video.status) == (25, 25, "ok")


@pytest.mark.parametrize("decoder", ["pyav", "decord", "torchcodec"])
def test_rotation_is_applied(video_dir: Path, decoder: str) -> None:
    _skip_unless_installed(decoder)
    path = rotate_header(_made(video_dir, "h264.mp4"), video_dir / "rotated.mp4")
    with open_video(path, decoder) as video:
        frames = list(video.stream(EVERY))
    assert frames[0].image.shape == (320, 240, 3)
    # Clockwise: what was at the left is now at the top.
    assert [read_number(np.rot90(frame.image)) for frame in frames] == list(range(75))


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
@pytest.mark.parametrize("name", ["faststart.mp4", "vp9.webm"])
def test_a_cut_file_gives_right_frames_or_an_error(video_dir: Path, name: str, decoder: str) -> None:
    _skip_unless_installed(decoder)
    path = cut_file(_made(video_dir, name), video_dir / f"cut-{name}", 0.6)
    try:
        with open_video(path, decoder) as video:
            frames = list(video.stream(EVERY))
    except VideoDecodeError:
        return
    assert video.status == "short"
    numbers = [read_number(frame.image) for frame in frames[: video.n_frames]]
    assert numbers == list(range(video.n_frames))


@pytest.mark.parametrize("name", ["faststart.mp4", "h264.mkv", "bframes.avi", "vp9.webm"])
def test_a_cut_file_is_short_and_its_frames_are_right(video_dir: Path, name: str) -> None:
    path = cut_file(_made(video_dir, name), video_dir / f"cut-{name}", 0.6)
    with open_video(path) as video:
        frames = list(video.stream(EVERY))
    assert video.status == "short"
    assert 0 < video.n_frames < VIDEOS[name][1]
    numbers = [read_number(frame.image) for frame in frames[: video.n_frames]]
    assert numbers == list(range(video.n_frames))


def test_flipped_bytes_are_damage_not_frames(video_dir: Path) -> None:
    data = bytearray(_made(video_dir, "faststart.mp4").read_bytes())
    for place in np.random.default_rng(0).integers(len(data) // 3, len(data), 400):
        data[place] ^= 0xFF
    path = video_dir / "flipped.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoDecodeError, match="damaged"), open_video(path) as video:
        list(video.stream(EVERY))


def _no_frames(path: Path) -> Path:
    """A complete file whose video track holds nothing."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    return path


def _playlist(path: Path) -> Path:
    write_video(path.with_name("h264.ts"), 5)
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nh264.ts\n#EXT-X-ENDLIST\n")
    return path


def _text(path: Path) -> Path:
    path.write_text("no video at all\n" * 100)
    return path


def _empty(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize(
    ("name", "make", "cause"),
    [
        ("sound.m4a", write_audio, "no video stream in it; what it has: audio"),
        ("text.mp4", _text, "cannot decode"),
        ("text.txt", _text, "tty"),
        ("empty.mp4", _empty, "empty"),
        ("list.m3u8", _playlist, "hls"),
        ("absent.mp4", lambda path: path, "no such file"),
    ],
)
def test_files_that_are_no_video(tmp_path: Path, name: str, make: Callable[[Path], Path], cause: str) -> None:
    path = make(tmp_path / name)
    with pytest.raises(VideoDecodeError) as caught, open_video(path) as video:
        list(video.stream(EVERY))
    assert cause in caught.value.what
    assert str(path) in caught.value.where


def test_a_header_without_moov_is_a_clear_error(video_dir: Path) -> None:
    path = cut_file(_made(video_dir, "h264.mp4"), video_dir / "headless.mp4", 0.5)
    with pytest.raises(VideoDecodeError, match="cannot decode"), open_video(path):
        pass


@pytest.mark.parametrize("name", ["none.mp4", "none.mkv"])
def test_a_video_of_no_frames_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(VideoDecodeError), open_video(_no_frames(tmp_path / name)) as video:
        list(video.stream(EVERY))


def test_a_span_behind_the_end_holds_no_frames(video_dir: Path) -> None:
    with open_video(_made(video_dir, "h264.mp4"), start_s=60.0) as video:
        assert list(video.stream(EVERY)) == []
    assert video.n_frames == 0


def test_a_folder_of_images_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number in range(12):
        image = av.VideoFrame.from_ndarray(draw_number(number), format="rgb24")
        image.save(tmp_path / f"img_{number}.png")  # img_10 sorts before img_2 as text
    (tmp_path / "notes.txt").write_text("not an image")
    with open_video(tmp_path, folder_fps=10.0, start_s=0.2) as video:
        frames = list(video.stream(np.array([0, 3, 8])))
    assert video.n_frames == 10
    assert [read_number(frame.image) for frame in frames] == [2, 5, 10]
    assert [frame.time_s for frame in frames] == pytest.approx([0.2, 0.5, 1.0])


def test_folders_without_images_or_with_broken_ones(tmp_path: Path) -> None:
    with pytest.raises(VideoDecodeError, match="no images"), open_video(tmp_path):
        pass
    (tmp_path / "1.jpg").write_text("no picture")
    with pytest.raises(VideoDecodeError, match="not a picture"), open_video(tmp_path) as video:
        list(video.stream(EVERY))


def test_open_files_do_not_pile_up(video_dir: Path) -> None:
    path = _made(video_dir, "single.mp4")

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    for _ in range(20):
        with open_video(path) as video:
            list(video.stream(EVERY))
    assert open_files() <= before
