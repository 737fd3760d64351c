"""Videos, cameras and GIFs: what comes out is played back and looked at."""

import io
import os
import resource
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from conftest import leftovers, no_traceback, one_sentence, python, run, save_gif
from PIL import Image

import const
import main
import pictures
from drawing import Output
from extras import video, video_files, video_masks
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


@pytest.fixture(params=["pyav", "opencv"])
def backend(request, monkeypatch):
    """Both ways to read and write videos."""
    if request.param == "opencv":
        monkeypatch.setattr(video_files, "find_pyav", lambda: None)
        monkeypatch.setattr(video, "find_pyav", lambda: None)
    return request.param


class Counting(Segmenter):
    """Counts the frames that it segments."""

    seen = 0

    def logits(self, pictures, *args):
        self.seen += len(pictures)
        return super().logits(pictures, *args)


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


def test_overlay_and_mask_videos_follow_the_face(red, clip, tmp_path, backend):
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
    gif = clip.rename(clip.with_suffix(".gif"))
    assert main.main([*base, str(first), "--gif", str(gif)]) == 1
    assert capsys.readouterr().err.count("no result of this program") == 2
    assert own.read_bytes() == gif.read_bytes() == before


def test_start_end_and_frame_stride(red, clip, tmp_path, backend):
    said = []
    timing = video.Timing(frame_stride=4, start=0.2, end=0.4)
    video.predict_video(red, clip, tmp_path, Output(("mask",)), timing, log=said.append)
    frames, _ = play(tmp_path / "clip_mask.mp4")
    assert len(frames) == 4  # frames 4 to 7 of 20 a second
    assert min(f[24:40, 12 + 4 * i : 28 + 4 * i].mean() for i, f in enumerate(frames, 4)) > 200  # the square moves
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
    assert not list((tmp_path / "out").glob("*"))


def test_a_video_cut_short_is_an_error_and_what_there_is_is_kept(tmp_path, lite_weights, capsys, backend):
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
    one_sentence(capsys.readouterr().err, f"breaks off at {frames / FPS:.2f} s")
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
    monkeypatch.setattr(video_files, "find_pyav", lambda: None)
    monkeypatch.setattr(cv2, "VideoWriter", Full)
    with pytest.raises(video.VideoError, match="could not be written"):
        video.predict_video(red, clip, tmp_path / "out", log=lambda *_: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_smoothing_calms_a_still_face_and_a_stride_segments_it_seldom(red):
    """The frame-to-frame change of masks on a still, noisy face falls to less than half."""
    rng = np.random.default_rng(0)
    still = cv2.GaussianBlur(square(3), (0, 0), 4)
    noisy = [np.clip(still + rng.normal(0, 20, still.shape), 0, 255).astype(np.uint8) for _ in range(20)]
    changes = {}
    for smooth in (0.0, 0.6):
        masked = video_masks.masked_frames(red, enumerate(noisy), threshold=0.5, smooth=smooth)
        changes[smooth] = video_masks.flicker([mask > 0 for *_, mask in masked][5:])
    assert changes[0.0] > 0.02
    assert changes[0.6] < changes[0.0] / 2
    counting = Counting(RedNet(), Info("lite", 64, 1))
    grain = (np.clip(still + rng.normal(0, 6, still.shape), 0, 255).astype(np.uint8) for _ in range(20))
    list(video_masks.masked_frames(counting, enumerate(grain), threshold=0.5, frame_stride=4))
    assert counting.seen == 5


@pytest.fixture(scope="module")
def covered_face():
    """Frames of a face over which a bar moves by 9 pixels a frame, their logits one by one, and where the bar is."""
    import model

    face = cv2.resize(pictures.read_picture(const.TEST_DIR / "chris.jpg"), (384, 508), interpolation=cv2.INTER_AREA)
    frames, bars, rng = [], [], np.random.default_rng(0)
    for i in range(14):
        frame, bar = face + rng.normal(0, 4, face.shape), np.zeros(face.shape[:2], bool)
        bar[:, 120 + 9 * i : 190 + 9 * i] = True
        frame[bar] = (70, 95, 60)
        frames.append(frame.clip(0, 255).astype(np.uint8))
        bars.append(bar)
    segmenter = Segmenter(*model.load(model.bundled_weights()), passes=1, log=lambda *_: None)
    return frames, [segmenter.logits([frame])[0] for frame in frames], bars


@pytest.mark.parametrize(("smooth", "stride"), [(0.8, 1), (0.0, 4), (0.9, 3)])
def test_what_moves_over_a_face_does_not_smear(covered_face, smooth, stride):
    frames, logits, bars = covered_face

    class Known:
        def logits(self, pictures):
            return [logits[next(i for i, frame in enumerate(frames) if frame is picture)] for picture in pictures]

    masked = video_masks.masked_frames(Known(), enumerate(frames), threshold=0.5, smooth=smooth, frame_stride=stride)
    masks = [mask > 0 for *_, mask in masked]
    assert sum(m.sum() for m in masks) > 0.95 * sum((one > 0).sum() for one in logits)
    assert sum((m & bar).sum() for m, bar in zip(masks, bars, strict=True)) < 0.01 * sum(bar.sum() for bar in bars)


# --- Faces followed by the fine pass alone --------------------------------------------------------------------------
class Passes(Segmenter):
    """Counts the coarse passes."""

    coarse = 0

    def _coarse_pass(self, pictures):
        self.coarse += len(pictures)
        return super()._coarse_pass(pictures)


def faces(*centres, size=(240, 320)) -> np.ndarray:
    frame = np.full((*size, 3), 110, np.uint8)
    for x, y in centres:
        cv2.circle(frame, (x, y), 25, (220, 30, 30), -1)
    return frame


def followed(frames) -> tuple[int, list[float]]:
    """The coarse passes made, and the fraction of each frame's pixels that another mask has with all of them."""
    masks, made = {}, {}
    for follow in (True, False):
        segmenter = Passes(RedNet(), Info("lite", 128, 2))
        masked = video_masks.masked_frames(segmenter, enumerate(frames), threshold=0.5, follow=follow)
        masks[follow] = [mask for *_, mask in masked]
        made[follow] = segmenter.coarse
    assert made[False] == len(frames)
    return made[True], [float(np.mean(a != b)) for a, b in zip(masks[True], masks[False], strict=True)]


def test_a_face_that_moves_is_followed_without_the_coarse_pass():
    made, changed = followed([faces((60 + 4 * i, 100 + i)) for i in range(40)])
    assert made == 4
    assert max(changed) < 0.005


@pytest.mark.parametrize(
    "then",
    [
        [faces((80, 100), (240, 150))] * 3,  # a second face
        [faces((240, 150))] * 3,  # a cut
        [faces()] * 3,  # none any more
        [faces((80 + 20 * i, 100)) for i in range(1, 6)],  # one that leaves its square
    ],
)
def test_the_coarse_pass_is_made_again_where_the_faces_are_not_known(then):
    made, changed = followed([faces((80, 100))] * 4 + then)
    assert made >= 2
    assert max(changed) < 0.005


def test_who_hides_faces_searches_every_frame(clip, tmp_path):
    for kind, made in (("overlay", 2), ("blurred", FRAMES)):
        segmenter = Passes(RedNet(), Info("lite", 64, 2))
        video.predict_video(segmenter, clip, tmp_path, Output((kind,)), log=lambda *_: None)
        assert segmenter.coarse == made


def test_a_face_that_comes_between_two_strides_is_hidden_at_once(red, clip, tmp_path, capsys):
    """And what goes into the GIF is hidden as well."""
    frames = [square(0) for _ in range(6)]
    for frame in frames[3:]:
        frame[40:60, 70:90] = (220, 30, 30)
    write_video(tmp_path / "two.mp4", frames)
    with video.writing_gif(tmp_path / "two.gif", lambda *_: None) as gif:
        timing = video.Timing(frame_stride=6)
        video.predict_video(red, tmp_path / "two.mp4", tmp_path, Output(("pixelated",)), timing, gif=gif)
    shown, original = play(tmp_path / "two_pixelated.mp4")[0], play(tmp_path / "two.mp4")[0]
    for i in range(3, 6):
        assert np.abs(shown[i][38:62, 68:92].astype(int) - original[i][38:62, 68:92]).max() > 50
    with Image.open(tmp_path / "two.gif") as gif:
        gif.seek(gif.n_frames - 1)
        last = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(last[38:62, 68:92] - original[5][38:62, 68:92]).max() > 50
    shared = {"gif": tmp_path / "both.gif", "shard": (1, 2), "log": lambda *_: None}  # the second is of the other part
    videos = [clip, tmp_path / "two.mp4"]
    assert not video.predict_videos(red, videos, tmp_path / "out", Output(("pixelated",)), timing, **shared)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{clip.stem}_pixelated.mp4"]
    with Image.open(tmp_path / "both.gif") as gif:
        gif.seek(gif.n_frames - 1)
        np.testing.assert_allclose(np.asarray(gif.convert("RGB")).astype(int), last, atol=30)  # of another palette
    assert main.main(["predict", str(clip), "--blur", "--frame-stride", "3", "--out", str(tmp_path)]) == 0
    assert "--frame-stride is left out" in capsys.readouterr().out


def test_a_video_without_a_face_and_one_that_is_done_already(tmp_path, small_bundled, capsys):
    write_video(tmp_path / "clip.mp4", [np.full((H, W, 3), 110, np.uint8)] * 3)
    weights = str(small_bundled[0])
    base = ["predict", str(tmp_path / "clip.mp4"), "--weights", weights, "--blur", "--out", str(tmp_path / "out")]
    assert main.main(base) == 0
    assert "Warning: " in (said := capsys.readouterr().out)
    assert "clip.mp4 shows no face. Nothing was hidden in it." in said
    assert main.main([*base, "--fail-empty"]) == 1
    one_sentence(capsys.readouterr().err, "clip.mp4 shows no face")
    before = (tmp_path / "out" / "clip_blurred.mp4").stat().st_mtime_ns
    assert main.main([*base, "--skip-existing"]) == 0
    assert "clip.mp4 is skipped" in capsys.readouterr().out
    assert (tmp_path / "out" / "clip_blurred.mp4").stat().st_mtime_ns == before
    assert main.main([*base, "--skip-existing", "--fail-empty"]) == 1
    one_sentence(capsys.readouterr().err, "clip.mp4 shows no face")
    assert main.main([*base, "--end", "0.1"]) == 0
    for said in ("3 frames of", "is skipped: its results exist"):  # a part is no reason to leave out the whole
        assert main.main([*base, "--skip-existing"]) == 0
        assert said in capsys.readouterr().out
    assert main.main([*base, "--skip-existing", "--end", "0.1"]) == 0
    assert "is skipped: its results exist" not in capsys.readouterr().out
    assert main.main(base) == 0
    (tmp_path / "none").mkdir()
    assert main.main([*base[:2], str(tmp_path / "none"), *base[2:], "--skip-existing"]) == 1  # it costs no other
    both = capsys.readouterr()
    one_sentence(both.err, "holds no pictures")
    assert "clip.mp4 is skipped" in both.out


def test_smoothing_starts_anew_at_a_cut(red):
    black, face = np.zeros((H, W, 3), np.uint8), square(3)
    face[:20] = face[44:] = 250
    frames = enumerate([black] * 5 + [face])
    masks = [m for *_, m in video_masks.masked_frames(red, frames, threshold=0.5, smooth=0.9)]
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


def test_a_camera_is_recorded_at_the_speed_at_which_it_was_seen(red, tmp_path, monkeypatch, backend):
    """The camera says 20 frames a second, gives fewer, and at uneven times; cv2.imshow fails as without windows."""
    pauses = [0.05, 0.3, 0.05, 0.1, 0.4, 0.05, 0.05, 0.2]

    class Camera:
        number = 0

        def isOpened(self):
            return True

        def get(self, _):
            return float(FPS)

        def read(self):
            if self.number == len(pauses):
                return False, None
            time.sleep(pauses[self.number])
            self.number += 1
            return True, square(self.number)[..., ::-1].copy()

        def release(self):
            pass

    def no_window(*_):
        raise cv2.error("no window")

    capture = cv2.VideoCapture  # which reads the recording back as well
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: Camera() if source == 0 else capture(source))
    monkeypatch.setattr(cv2, "imshow", no_window)
    said = []
    monkeypatch.setattr(time, "strftime", lambda _: "20261128-101500")
    recording = tmp_path / "new" / "webcam-0_20261128-101500_overlay.mp4"
    assert video.record_camera(red, 0, tmp_path / "new", log=said.append) == [recording]
    assert sum("no windows" in line for line in said) == 1
    assert said[-1].startswith(f"{len(pauses)} frames recorded")
    monkeypatch.undo()
    with av.open(str(recording)) as file:
        times = [frame.time for frame in file.decode(video=0)]
    assert abs(times[-1] - sum(pauses[1:])) < 0.2
    assert len(times) == (len(pauses) if backend == "pyav" else round(times[-1] * FPS) + 1)


def test_memory_does_not_grow_with_the_video(red):
    """Frames are read a few ahead only: an endless source can be segmented."""
    frames = ((i, square(i % 10)) for i in range(10**9))
    masked = video_masks.masked_frames(red, frames, threshold=0.5)
    assert sum(1 for _, _ in zip(range(50), masked, strict=False)) == 50


def test_a_pipe(tmp_path, lite_weights):
    data = io.BytesIO()
    Image.fromarray(square(2)).save(data, "PNG")
    command = ["main.py", "predict", "-", "--weights", lite_weights]
    done = run(*command, given=data.getvalue(), text=False)
    assert done.returncode == 0, done.stderr
    mask = np.asarray(Image.open(io.BytesIO(done.stdout)))
    assert mask.shape == (H, W)
    assert set(np.unique(mask)) <= {0, 255}
    bad = run(*command, given=b"no picture")
    assert (bad.returncode, bad.stdout) == (1, "")
    one_sentence(bad.stderr, "standard input")


# --- Real files: sound, orientation, times, sizes -------------------------------------------------------------------
STAMPS = [0, 40, 120, 160, 200, 400, 440, 480, 600, 640, 680, 800, 840, 1000]  # milliseconds: a variable frame rate


def encoded_video(
    path: Path, sound: str | None = "aac", stamps=STAMPS, size=(W, H), turned: int = 0, colors=None, aspect=Fraction(1)
) -> Path:
    """H.264 with a red square, and a tone that sounds from half a second on."""
    options = {"format": "adts"} if path.suffix == ".aac" else {}
    with av.open(str(path), "w", **options) as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.sample_aspect_ratio = aspect
        if colors:
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = colors
        tone = sound and file.add_stream(sound, rate=48000, layout="stereo")
        for i, stamp in enumerate(stamps):
            image = np.full((size[1], size[0], 3), 110, np.uint8)
            image[:24, 2 * i : 2 * i + 24] = (220, 30, 30)
            image[-1], image[:, -1] = 200, 60  # of an odd size, the parts that would be lost
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame = frame.reformat(format=stream.pix_fmt, dst_colorspace=colors or 5, dst_color_range=1)
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if tone:
            wave = np.sin(np.arange(48000) * 440 * 2 * np.pi / 48000).astype(np.float32) * 0.5
            wave[:24000] = 0
            frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            file.mux(tone.encode(frame))
            file.mux(tone.encode(None))
    if turned:  # counterclockwise, by the matrix in the track's header
        sine, cosine = {90: (1, 0), 180: (0, -1), -90: (-1, 0)}[turned]
        matrix = np.array([cosine, -sine, 0, sine, cosine, 0, 0, 0, 2**14]) * 2**16
        data = path.read_bytes()
        at = data.index(b"tkhd") + 44
        path.write_bytes(data[:at] + matrix.astype(">i4").tobytes() + data[at + 36 :])
    return path


def listen(path: Path) -> tuple[str, np.ndarray]:
    """The codec of a file's sound, and its samples of one channel by their times, 48000 a second."""
    with av.open(str(path)) as file:
        heard, resampler = np.zeros(96000, np.float32), av.AudioResampler("fltp", "mono", 48000)
        for frame in file.decode(audio=0):
            at = round(frame.time * 48000)
            for part in resampler.resample(frame):
                samples = part.to_ndarray()[0]
                place = heard[max(0, at) : max(0, at) + len(samples)]
                place[:] = samples[: len(place)]
        return file.streams.audio[0].codec_context.name, heard


def seen(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """The times and frames of a file, RGB."""
    with av.open(str(path)) as file:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
    return [t for t, _ in frames], [image for _, image in frames]


@pytest.mark.parametrize(("name", "sound"), [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.mov", "pcm_s16le"),
                                             ("a.mkv", "libmp3lame"), ("a.ts", "aac")])  # fmt: skip
def test_what_browsers_play_with_the_sound_and_the_times_of_the_source(red, tmp_path, name, sound):
    source = encoded_video(tmp_path / name, sound)
    video.predict_video(red, source, tmp_path / "out", Output(("overlay", "mask")), log=lambda *_: None)
    for kind in ("overlay", "mask"):
        result = tmp_path / "out" / f"a_{kind}.mp4"
        with av.open(str(result)) as file:
            stream = file.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        data = result.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")  # it plays while it is still fetched
        assert pictures.read_tag(result) == pictures.identity(source)
        times, _ = seen(result)
        np.testing.assert_allclose(np.diff(times), np.diff(STAMPS) / 1000, atol=1e-3)
        codec, heard = listen(result)
        assert codec == ("mp3float" if sound == "libmp3lame" else "aac")
        loud = np.abs(heard[:48000]) > 0.1
        assert abs(np.flatnonzero(loud)[0] / 48000 - 0.5 - times[0]) < 0.06
        assert loud[26000:46000].mean() > 0.7
        assert np.abs(heard[:22000]).max() < 0.1


@pytest.mark.parametrize(
    ("name", "codec", "options"), [("a.ts", "libx264", {}), ("a.avi", "libx264", {}), ("a.avi", "mpeg4", {"bf": "2"})]
)
def test_every_frame_is_there_where_frames_are_stored_out_of_order(red, tmp_path, name, codec, options):
    with av.open(str(tmp_path / name), "w") as file:
        stream = file.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        for i in range(FRAMES):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(square(i), "rgb24")))
        file.mux(stream.encode(None))
    video.predict_video(red, tmp_path / name, tmp_path / "out", log=lambda *_: None)
    times, _ = seen(tmp_path / "out" / "a_overlay.mp4")
    np.testing.assert_allclose(np.diff(times), [1 / 30] * (FRAMES - 1), atol=1e-3)


def test_a_matroska_file_with_sound_that_was_cut_short_is_an_error(lite_weights, tmp_path, capsys):
    whole = encoded_video(tmp_path / "a.mkv", "libopus")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert main.main(["predict", str(whole), "--weights", str(lite_weights), "--out", str(tmp_path / "out")]) == 1
    one_sentence(capsys.readouterr().err, "breaks off at")


def test_start_and_end_cut_the_sound(red, tmp_path):
    source = encoded_video(tmp_path / "a.mp4")
    timing = video.Timing(start=0.4, end=0.8)
    video.predict_video(red, source, tmp_path, timing=timing, log=lambda *_: None)
    times, _ = seen(tmp_path / "a_overlay.mp4")
    np.testing.assert_allclose(times, [(t - 400) / 1000 for t in STAMPS if 400 <= t < 800], atol=1e-3)
    _, heard = listen(tmp_path / "a_overlay.mp4")
    loud = np.flatnonzero(np.abs(heard) > 0.1) / 48000
    assert abs(loud[0] - 0.1) < 0.05
    assert abs(loud[-1] - 0.4) < 0.05


@pytest.mark.parametrize(("name", "zero"), [("a.mp4", 0), ("a.mkv", 5000)])  # the length in an MKV counts from 0
def test_a_late_start_is_sought_and_hits_the_frame(red, tmp_path, name, zero):
    source = encoded_video(tmp_path / name, None, range(zero, zero + 12000, 40))
    video.predict_video(red, source, tmp_path, timing=video.Timing(start=11.48, end=11.8), log=lambda *_: None)
    times, frames = seen(tmp_path / "a_overlay.mp4")
    assert len(times) == 8
    whole = list(video_files.read(video_files.probe(source), errors := []))
    assert errors == []
    first = next(image for at, image in whole if at == Fraction(1148, 100))
    assert np.abs(frames[0].astype(int) - first).mean() < 12  # the overlay covers the square only


@pytest.mark.parametrize("turned", [90, 180, -90])
def test_orientation(red, tmp_path, turned, backend):
    source = encoded_video(tmp_path / "a.mp4", turned=turned)
    video.predict_video(red, source, tmp_path, Output(("mask",)), log=lambda *_: None)
    _, frames = seen(tmp_path / "a_mask.mp4")
    expected = np.zeros((H, W), np.uint8)
    expected[:24, :24] = 255
    expected = np.rot90(expected, turned // 90)
    assert frames[0].shape[:2] == expected.shape
    assert np.abs(frames[0][..., 0].astype(int) - expected).mean() < 10


def test_pixels_that_are_not_square_stay_so(red, tmp_path):
    for turned, expected in ((0, Fraction(2)), (90, Fraction(1, 2)), (180, Fraction(2))):
        source = encoded_video(tmp_path / f"{turned}.mp4", turned=turned, aspect=Fraction(2))
        video.predict_video(red, source, tmp_path, Output(("mask",)), log=lambda *_: None)
        with av.open(str(tmp_path / f"{turned}_mask.mp4")) as file:
            assert file.streams.video[0].sample_aspect_ratio == expected


def test_odd_sizes_keep_every_row_and_column(red, tmp_path, backend):
    source, said = encoded_video(tmp_path / "a.mp4", None, [0, 40, 80], (97, 65)), []
    video.predict_video(red, source, tmp_path, Output(("overlay", "mask"), alpha=0.0), log=said.append)
    assert any("odd size" in line for line in said)
    for kind in ("overlay", "mask"):
        _, frames = seen(tmp_path / f"a_{kind}.mp4")
        assert len(frames) == 3
        assert frames[1].shape == (66, 98, 3)
        expected = seen(source)[1][1] if kind == "overlay" else np.zeros((65, 97, 3))
        if kind == "mask":
            expected[:24, 2:26] = 255
        expected = np.pad(expected, ((0, 1), (0, 1), (0, 0)), "edge")
        difference = np.abs(frames[1].astype(int) - expected)
        assert max(difference.mean(), difference[63:].mean(), difference[:, 95:].mean()) < 6


@pytest.mark.parametrize("colors", [1, None])
def test_colours_stay(red, tmp_path, colors):
    """Of BT.709 and of a file that does not say; a wrong matrix moves red by 20 grey levels."""
    source = encoded_video(tmp_path / "a.mp4", None, colors=colors)
    video.predict_video(red, source, tmp_path, Output(("overlay",), alpha=0.0), log=lambda *_: None)
    with av.open(str(tmp_path / "a_overlay.mp4")) as file:
        assert file.streams.video[0].codec_context.colorspace == (colors or 2)
    before, after = seen(source)[1][3], seen(tmp_path / "a_overlay.mp4")[1][3]
    assert np.abs(before[4:20, 10:26].astype(int) - (220, 30, 30)).mean() < 6
    assert np.abs(before.astype(int) - after).mean() < 3


# --- Names, full disks, GIFs -----------------------------------------------------------------------------------------
@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_names_that_are_no_text_and_names_that_are_long(clip, tmp_path, lite_weights, backend):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in\xff"))
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/out\xfe"))
    folder.mkdir()
    odd, long = folder / os.fsdecode(b"\xfa.mp4"), folder / ("n" * 251 + ".mp4")
    for path in (odd, long):
        path.write_bytes(clip.read_bytes())
    missing = "n" * 300 + ".mp4"
    code = f"""import main
from extras import video, video_files
if {backend == "opencv"}:
    video.find_pyav = video_files.find_pyav = lambda: None
sys.exit(main.main(sys.argv[1:]))"""
    done = python(code, "predict", odd, missing, long, "--weights", lite_weights, "--out", out)
    assert done.returncode == 1, done.stderr
    one_sentence(done.stderr, "nnn")
    results = sorted(out.iterdir())
    assert [len(play_any(path)) for path in results] == [FRAMES, FRAMES]


def play_any(path: Path) -> list:
    with path.open("rb") as data, av.open(data) as file:
        return list(file.decode(video=0))


@pytest.mark.parametrize("limit", [3000, 30_000])
def test_a_disk_that_fills(red, tmp_path, backend, limit):
    """A limit on the size of files stands for it; nothing is left under the result's name."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (H, W, 3)).astype(np.uint8) for _ in range(FRAMES)]
    source = write_video(tmp_path / "clip.mp4", noise)
    assert source.stat().st_size > limit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        errors = video.predict_videos(
            red, [source], tmp_path / "out", Output(("overlay",)), video.Timing(), gif=tmp_path / "out" / "all.gif",
            log=lambda *_: None,
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert errors
    assert all("could not be written" in error or "too large" in error for error in errors)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_gif_of_a_video_segments_it_once_and_a_broken_file_costs_its_frame_only(clip, tmp_path):
    counting = Counting(RedNet(), Info("lite", 64, 1))
    broken, folder = tmp_path / "broken.mp4", tmp_path / "pictures"
    broken.write_bytes(clip.read_bytes()[:300])
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    Image.fromarray(square(0)).save(folder / "b.png")
    errors = video.predict_videos(
        counting, [broken, folder, clip], tmp_path / "out", Output(("overlay",)), video.Timing(),
        gif=tmp_path / "all.gif", log=lambda *_: None,
    )  # fmt: skip
    assert counting.seen == FRAMES + 1
    assert len(errors) == 2
    assert "broken.mp4" in errors[0]
    assert "a.png" in errors[1]
    assert pictures.read_tag(tmp_path / "all.gif")
    with Image.open(tmp_path / "all.gif") as gif:
        shown = []
        for i in range(gif.n_frames):
            gif.seek(i)
            shown.append((gif.info["duration"], np.asarray(gif.convert("RGB"))))
    assert [at for at, _ in shown] == [100] * (FRAMES // 2) + [1000]
    for i, (_, image) in enumerate(shown[:-1]):
        assert image[32, 8 + 8 * i + 12, 2] > 150  # the overlay, where the square is in every other frame
        assert np.abs(image[:14].astype(int) - 110).max() < 25


def test_a_long_gif_takes_no_memory(tmp_path):
    import tracemalloc

    def frames(count: int):
        for i in range(count):
            frame = np.full((60, 80, 3), 110, np.uint8)
            frame[:, i % 80] = (i % 256, 0, 255)
            yield frame

    tracemalloc.start()
    peaks = []
    for count in (20, 150):
        tracemalloc.reset_peak()
        save_gif(frames(count), tmp_path / "long.gif", fps=12.5)
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[1] < peaks[0] + 400_000  # 150 frames of 80 x 60 are 2.2 MB
    with Image.open(tmp_path / "long.gif") as gif:
        assert gif.n_frames == 150
        gif.seek(149)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - list(frames(150))[149]).mean() < 8
