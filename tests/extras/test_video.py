"""Videos, cameras and GIFs: what comes out is played back and looked at."""

import io

import cv2
import numpy as np
import pytest
import torch
from conftest import leftovers, no_traceback, one_sentence, run
from PIL import Image

import main
import pictures
from drawing import Output
from extras import video
from inference import Segmenter
from model import Info

W, H, FPS, FRAMES = 96, 64, 20, 12


class RedNet(torch.nn.Module):
    """A stand-in network for which red is face."""

    def forward(self, x):
        return (x[:, :1] - x[:, 1:2]) * 3 - 2


@pytest.fixture
def red():
    return Segmenter(RedNet(), Info("lite", 64, 1))


def square(i: int) -> np.ndarray:
    """Frame i: a red square that moves right over grey, RGB."""
    frame = np.full((H, W, 3), 110, np.uint8)
    frame[20:44, 8 + 4 * i : 32 + 4 * i] = (220, 30, 30)
    return frame


def write_video(path, frames, fps=FPS):
    file = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (W, H))
    for frame in frames:
        file.write(frame[..., ::-1])
    file.release()
    return path


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.mp4", (square(i) for i in range(FRAMES)))


def play(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (got := capture.read())[0]:
        frames.append(got[1][..., ::-1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def test_overlay_and_mask_videos_follow_the_face(red, clip, tmp_path):
    video.predict_video(red, clip, tmp_path / "out", Output(("overlay", "mask")), log=lambda *_: None)
    overlays, fps = play(tmp_path / "out" / "clip_overlay.mp4")
    masks, _ = play(tmp_path / "out" / "clip_mask.mp4")
    assert (len(overlays), len(masks), fps) == (FRAMES, FRAMES, FPS)
    assert overlays[0].shape == masks[0].shape == (H, W, 3)
    for i in range(FRAMES):
        inside, outside = masks[i][24:40, 12 + 4 * i : 28 + 4 * i], masks[i][:14]
        assert inside.mean() > 200
        assert outside.mean() < 40
        assert overlays[i][32, 20 + 4 * i, 2] > 150  # #8000ff: blue over the red square
    assert not leftovers(tmp_path)


def test_no_two_videos_into_one_file_and_none_into_a_users(clip, tmp_path, lite_weights, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
    first = write_video(tmp_path / "a" / "clip.mp4", [square(0)] * 3)
    second = write_video(tmp_path / "b" / "clip.mp4", [square(0)] * 5)
    out = tmp_path / "out"
    base = ["predict", "--weights", str(lite_weights), "--out", str(out)]
    for _ in range(2):
        assert main.main([*base, str(first), str(second)]) == 0
        assert [len(play(out / f"clip{n}_overlay.mp4")[0]) for n in ("", "_mp4")] == [3, 5]
        assert len(list(out.iterdir())) == 2
    assert pictures.read_tag(out / "clip_overlay.mp4") == pictures.identity(first)
    own = out / "clip_overlay.mp4"
    before = clip.read_bytes()
    own.write_bytes(before)
    capsys.readouterr()
    assert main.main([*base, str(first), "--gif", str(clip)]) == 1
    assert capsys.readouterr().err.count("no result of this program") == 2
    assert own.read_bytes() == clip.read_bytes() == before


def test_start_end_and_frame_stride(red, clip, tmp_path):
    said = []
    timing = video.Timing(frame_stride=4, start=0.2, end=0.4)
    video.predict_video(red, clip, tmp_path, Output(("mask",)), timing, log=said.append)
    frames, _ = play(tmp_path / "clip_mask.mp4")
    assert len(frames) == 4  # frames 4 to 7 of 20 a second
    held = [f[24:40, 12 + 16 : 28 + 16].mean() for f in frames]  # where the square was in frame 4
    assert min(held) > 200
    assert "4 frames" in said[-1]
    with pytest.raises(video.VideoError, match="no frames between 5 s"):
        video.predict_video(red, clip, tmp_path / "late", timing=video.Timing(start=5.0))
    assert not (tmp_path / "late" / "clip_overlay.mp4").exists()


@pytest.mark.parametrize("kind", ["empty", "text", "cut short", "missing"])
def test_no_video_is_one_sentence(kind, clip, tmp_path, lite_weights, capsys):
    bad = tmp_path / "bad.mp4"
    if kind == "empty":
        bad.touch()
    elif kind == "text":
        bad.write_text("no video")
    elif kind == "cut short":
        bad.write_bytes(clip.read_bytes()[:300])
    assert main.main(["predict", str(bad), "--weights", str(lite_weights), "--out", str(tmp_path / "out")]) == 1
    one_sentence(capsys.readouterr().err, "bad.mp4")
    assert not leftovers(tmp_path)
    assert not list((tmp_path / "out").glob("*.mp4")) if (tmp_path / "out").exists() else True


def test_a_video_cut_short_is_an_error_and_what_there_is_is_kept(tmp_path, lite_weights, capsys):
    whole = tmp_path / "clip.avi"
    file = cv2.VideoWriter(str(whole), cv2.VideoWriter_fourcc(*"MJPG"), FPS, (W, H))
    for i in range(FRAMES):
        file.write(square(i)[..., ::-1])
    file.release()
    data = whole.read_bytes()
    whole.write_bytes(data[: data.index(b"idx1") // 2 + 4000])  # the header still counts them all
    base = ["predict", str(whole), "--weights", str(lite_weights), "--out", str(tmp_path / "out")]
    frames = len(play(whole)[0])
    assert 0 < frames < FRAMES
    assert main.main(base) == 1
    one_sentence(capsys.readouterr().err, f"frame {frames + 1} of {FRAMES}")
    assert len(play(tmp_path / "out" / "clip_overlay.mp4")[0]) == frames


def test_a_video_that_is_not_all_on_the_disk_gets_no_name(red, clip, tmp_path, monkeypatch):
    class Full:
        """A writer on a disk that is full after some frames, and says nothing."""

        def __init__(self):
            self.file, self.left = writer(), FRAMES // 2

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, frame):
            self.left -= 1
            if self.left >= 0:
                self.file.write(frame)

    writer = cv2.VideoWriter
    monkeypatch.setattr(video.cv2, "VideoWriter", Full)
    with pytest.raises(video.VideoError, match="could not be written"):
        video.predict_video(red, clip, tmp_path / "out", log=lambda *_: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_smoothing_calms_a_still_face(red):
    """The frame-to-frame change of masks on a still, noisy face falls to less than half."""
    rng = np.random.default_rng(0)
    still = square(3)
    noisy = [np.clip(still + rng.normal(0, 45, still.shape), 0, 255).astype(np.uint8) for _ in range(20)]
    changes = {}
    for smooth in (0.0, 0.8):
        masked = video.masked_frames(red, iter(noisy), threshold=0.5, smooth=smooth)
        changes[smooth] = video.flicker([mask > 0 for _, mask in masked][5:])
    assert changes[0.0] > 0.02
    assert changes[0.8] < changes[0.0] / 2


def test_smoothing_starts_anew_at_a_cut(red):
    black, face = np.zeros((H, W, 3), np.uint8), square(3)
    face[:20] = face[44:] = 250
    masks = [m for _, m in video.masked_frames(red, iter([black] * 5 + [face]), threshold=0.5, smooth=0.9)]
    assert masks[4].max() == 0
    assert masks[5][25:40, 25:40].mean() > 250


def test_predict_command_with_a_video_a_picture_and_a_gif(clip, tmp_path, lite_weights):
    Image.fromarray(square(0)).save(tmp_path / "one.png")
    done = no_traceback(
        run("main.py", "predict", clip, tmp_path / "one.png", "--weights", lite_weights, "--out", tmp_path / "out",
            "--masks", "--gif", tmp_path / "all.gif", "--save", "overlay,cutout")
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "clip_overlay.mp4", "clip_mask.mp4", "one_overlay.jpg", "one_cutout.png",
    }  # fmt: skip
    assert "frames/s" in done.stdout
    with Image.open(tmp_path / "all.gif") as gif:
        assert gif.n_frames == FRAMES // 2 + 1  # ten frames a second, and the picture
        assert gif.size == (W, H)
        assert gif.info["loop"] == 0


def test_no_camera_is_one_sentence(tmp_path, lite_weights, capsys):
    assert main.main(["predict", "--webcam", "97", "--weights", str(lite_weights), "--out", str(tmp_path)]) == 1
    one_sentence(capsys.readouterr().err, "Camera 97")
    assert not list(tmp_path.glob("webcam*"))


def test_a_camera_is_recorded_without_a_window(red, clip, tmp_path, monkeypatch):
    """A video stands in for the camera; cv2.imshow fails as it does in a headless OpenCV."""

    def no_window(*_):
        raise cv2.error("no window")

    monkeypatch.setattr(video.cv2, "imshow", no_window)
    said = []
    count = video.record_camera(red, str(clip), tmp_path / "cam.mp4", log=said.append)
    assert count == FRAMES == len(play(tmp_path / "cam.mp4")[0])
    assert sum("no windows" in line for line in said) == 1


def test_memory_does_not_grow_with_the_video(red):
    """Frames are read a few ahead only: an endless source can be segmented."""
    frames = (square(i % 10) for i in range(10**9))
    masked = video.masked_frames(red, frames, threshold=0.5)
    assert sum(1 for _, _ in zip(range(50), masked, strict=False)) == 50


def test_a_pipe(tmp_path, lite_weights):
    import subprocess
    import sys

    from conftest import ROOT

    data = io.BytesIO()
    Image.fromarray(square(2)).save(data, "PNG")
    command = [sys.executable, str(ROOT / "main.py"), "predict", "-", "--weights", str(lite_weights)]
    done = subprocess.run(command, input=data.getvalue(), capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    mask = np.asarray(Image.open(io.BytesIO(done.stdout)))
    assert mask.shape == (H, W)
    assert set(np.unique(mask)) <= {0, 255}
    bad = subprocess.run(command, input=b"no picture", capture_output=True, timeout=120, check=False)
    assert bad.returncode == 1
    assert bad.stdout == b""
    one_sentence(bad.stderr.decode(), "standard input")
