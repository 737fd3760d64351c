"""A page in the browser: photographs and videos in, faces marked, cut out or hidden. `main.py demo` opens it.

Gradio is optional: `pip install "gradio>=6"`. An upload is deleted as soon as it is read; what the page goes on with is
in memory, of the last `SESSIONS` visitors and for `KEPT` seconds; results can be downloaded for `FILES_KEPT` seconds.

A Hugging Face Space runs the repository with two more files, README.md and app.py:

    ---
    sdk: gradio
    app_file: app.py
    ---
    import main; raise SystemExit(main.main(["demo", "--host", "0.0.0.0", "--port", "7860"]))
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ImageColor

import const
from common import UserError, is_out_of_memory, reason
from drawing import Output, encode, find_faces, parse_color
from inference import to_mask
from pictures import find_jobs, read_picture

UPLOAD = "200mb"  # the largest file that is taken
PIXELS = 50_000_000  # of the largest photograph; of it 350 MB stay in memory
WAITING = 20  # jobs in the queue; the next visitor is told to come back
SESSIONS = 10  # visitors whose last photograph is remembered, the latest ones
SHOWN = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif")  # what browsers show themselves
KEPT = 600  # seconds that a photograph is remembered
FILES_KEPT = 3600  # seconds that an upload may wait in the queue, and a result can be fetched
NAMES = {
    "overlay": "Overlay",
    "contour": "Contour",
    "cutout": "Cut-out",
    "blurred": "Blur",
    "pixelated": "Pixelate",
    "mask": "Mask",
}
VIEW = {"height": 420, "elem_classes": "view"}
STYLE = """
.status p { min-height: 1.6em; margin: 0; font-size: 1.05em }
.view img { background: repeating-conic-gradient(#8884 0 25%, #fff4 0 50%) 0 0 / 20px 20px }
#result .image-container { padding-bottom: 40px }  /* as high as the row of buttons under the photograph */
@media (max-width: 640px) { .view { height: 320px !important } }
footer { display: none !important }
"""


@dataclass(frozen=True)
class Seen:
    """A photograph and what the network made of it, so that other settings need no second run."""

    name: str
    picture: np.ndarray  # uint8 (H, W, 3)
    logits: np.ndarray  # float32 (H, W)
    ms: float
    animated: bool  # it is the first frame of an animation


# --- What the page does ----------------------------------------------------------------------------------------------
def see(segmenter, path: Path) -> Seen:
    """Read a photograph and segment it. Raises UserError: it cannot be read, or is too large."""
    animations: list[str] = []
    picture = read_picture(path, name=path.name, animated=animations.append)
    if picture.shape[0] * picture.shape[1] > PIXELS:
        raise UserError(f"{path.name} has more than {PIXELS // 10**6} million pixels; scale it down.")
    began = time.perf_counter()
    logits = segmenter.logits([picture])[0]
    return Seen(path.stem, picture, logits, 1000 * (time.perf_counter() - began), bool(animations))


def show(seen: Seen, output: Output, folder: Path) -> tuple[Path, str]:
    """Write NAME_kind.png or .jpg into a new folder in `folder`; the file, and a line on what was found."""
    (kind,), mask = output.results, to_mask(seen.logits, output.threshold)
    file = Path(tempfile.mkdtemp(dir=folder)) / f"{seen.name}_{kind}{const.RESULTS[kind]}"
    file.write_bytes(encode(output.draw(kind, seen.picture, mask), file.suffix))
    faces, (h, w) = len(find_faces(mask, seen.logits)), mask.shape
    number = {0: "no face", 1: "1 face"}.get(faces, f"{faces} faces")
    line = f"**{number}** · {mask.mean() / 2.55:.1f} % of the picture · {seen.ms:.0f} ms · {w} × {h} pixels"
    if seen.animated:
        line += " · first frame of the animation"
    if not faces and output.hiding:
        line += " · nothing is hidden: the picture is as it was"
    return file, line


def _rgb(color: str | None) -> tuple[int, int, int]:
    """What the colour picker gives: "#8000ff", "rgba(128.4, 0, 255, 1)", "hsla(120, 50%, 50%, 1)"; the default colour
    for what is none."""
    numbers = re.findall(r"[0-9.]+", color or "")[:3]
    with suppress(ValueError):
        if len(numbers) == 3 and color.startswith("rgb"):
            return tuple(min(255, round(float(n))) for n in numbers)
        if len(numbers) == 3 and color.startswith("hsl"):
            color = "hsl({}, {}%, {}%)".format(*numbers)
        return ImageColor.getrgb(color or "")[:3]
    return parse_color(const.OVERLAY_COLOR)


def _output(kind: str, color: str | None, alpha: float, threshold: float) -> Output:
    return Output((kind,), threshold=threshold, color=_rgb(color), alpha=alpha)


def _forget(upload: Path, folder: Path) -> None:
    """Delete an upload; a path outside `folder`, such as a sample photograph's, is no upload and is kept."""
    if upload.resolve().is_relative_to(folder.resolve()):
        upload.unlink(missing_ok=True)


def _sentence(error: Exception) -> str:
    """An error as the command line has it; what is no mistake of the user's is raised again."""
    if isinstance(error, UserError):
        return f"⚠ {error}"
    if is_out_of_memory(error):
        return "⚠ The memory does not suffice; take a smaller file."
    if isinstance(error, OSError):
        return f"⚠ {Path(error.filename or 'writing').name}: {error.strerror or error}."
    raise error


# --- The page --------------------------------------------------------------------------------------------------------
def _gradio():
    try:
        import gradio
    except ImportError:
        gradio = None
    if gradio is None or int(gradio.__version__.split(".")[0]) < 6:
        raise UserError('The page needs Gradio 6 or later: pip install "gradio>=6"')
    return gradio


def _build(gr, segmenter, folder: Path):
    """The page as a gradio.Blocks, not yet open; results go to `folder`, which is Gradio's own for temporary files."""
    with gr.Blocks(title="Face segmentation", analytics_enabled=False, delete_cache=(30, FILES_KEPT)) as page:
        gr.Markdown("# Face segmentation\nThe visible face, without glasses and without what is in front of it.")
        with gr.Tab("Photograph"):
            _photograph_tab(gr, segmenter, folder)
        with gr.Tab("Video"):
            _video_tab(gr, segmenter, folder)
    return page.queue(max_size=WAITING)


def _settings(gr, kinds: dict[str, str]) -> list:
    """The controls kind, colour, opacity, threshold; colour and opacity are there for the results that have them."""
    with gr.Row():
        choices = [(name, kind) for kind, name in kinds.items()]
        kind = gr.Radio(choices, value="overlay", label="Result", scale=5, min_width=300)
        color = gr.ColorPicker(const.OVERLAY_COLOR, label="Colour", scale=1, min_width=100)
    with gr.Row():
        alpha = gr.Slider(0, 1, const.OVERLAY_ALPHA, step=0.05, label="Opacity", min_width=300)
        threshold = gr.Slider(0.05, 0.95, const.THRESHOLD, step=0.05, label="Threshold", min_width=300)
    kind.change(
        lambda kind: (gr.update(interactive=kind in ("overlay", "contour")), gr.update(interactive=kind == "overlay")),
        kind,
        [color, alpha],
        api_visibility="private",
        show_progress="hidden",
    )
    return [kind, color, alpha, threshold]


def _shown(gr, file: Path | None, line: str) -> tuple:
    """What result, download button and status line are to show."""
    value, label = file and str(file), f"Download {file.name}" if file else "Download"
    return value, gr.update(value=value, label=label, interactive=bool(file)), line


def _photograph_tab(gr, segmenter, folder: Path) -> None:
    seen = gr.State(time_to_live=KEPT)
    sources = ["upload", "clipboard", "webcam"]
    with gr.Row():
        given = gr.Image(label="Photograph", sources=sources, buttons=[], format="jpeg", **VIEW)
        result = gr.Image(label="Result", interactive=False, buttons=["fullscreen"], elem_id="result", **VIEW)
    status = gr.Markdown("Drop a photograph, paste one, use the camera, or take an example.", elem_classes="status")
    settings = _settings(gr, NAMES)
    download = gr.DownloadButton("Download", interactive=False)
    samples = [job.path for job in find_jobs([const.TEST_DIR], folder)]
    gr.set_static_paths(samples)  # served from where they are: a copy would go with an upload of the same photograph
    rows = [[str(path)] for path in samples]
    examples = gr.Dataset(components=[gr.Image(render=False)], samples=rows, type="index", label="Examples")
    shown = [result, download, status]

    def draw(seen: Seen | None, *settings) -> tuple:
        if seen is None:
            return _shown(gr, None, "The page has no photograph any more; give it once more.")
        return _shown(gr, *show(seen, _output(*settings), folder))

    def photograph(path: Path, *settings) -> tuple:
        try:
            seen = see(segmenter, path)
            input_shown = gr.update() if path.suffix.lower() in SHOWN else seen.picture
            return input_shown, seen, *draw(seen, *settings)
        except Exception as error:  # noqa: BLE001  a mistake of ours is raised again
            return None, None, *_shown(gr, None, _sentence(error))

    def upload(file: dict | None, *settings) -> tuple:
        if file is None:
            return gr.update(), None, *_shown(gr, None, "")
        try:
            return photograph(Path(file["path"]), *settings)
        finally:
            _forget(Path(file["path"]), folder)

    def example(index: int, *settings) -> tuple:
        return str(samples[index]), *photograph(samples[index], *settings)[1:]

    private = {"api_visibility": "private", "show_progress_on": result}
    network, whole = {**private, "concurrency_id": "photographs"}, [given, seen, *shown]
    # without preprocessing: Gradio would decode the file itself, and a broken one with a sentence of its own
    given.input(upload, [given, *settings], whole, preprocess=False, **network)
    examples.click(example, [examples, *settings], whole, **network)
    changes = [control.change for control in settings]
    gr.on(changes, draw, [seen, *settings], shown, trigger_mode="always_last", show_progress="hidden", **private)


def _video_tab(gr, segmenter, folder: Path) -> None:
    with gr.Row():
        given = gr.File(file_types=list(const.VIDEO_SUFFIXES), label="Video", **VIEW)  # also what no browser plays
        result = gr.Video(label="Result", interactive=False, buttons=[], **VIEW)
    status = gr.Markdown("Drop a video; the upload is deleted once it is segmented.", elem_classes="status")
    settings = _settings(gr, {kind: name for kind, name in NAMES.items() if kind != "cutout"})
    with gr.Row():
        start = gr.Button("Segment", variant="primary")
        download = gr.DownloadButton("Download", interactive=False)

    bars = gr.Progress(track_tqdm=True)

    def segment(file: dict | None, kind, color, alpha, threshold, progress=bars) -> tuple:
        from extras.video import predict_video

        if file is None:
            return None, *_shown(gr, None, "Give a video first.")
        path, out, lines = Path(file["path"]), Path(tempfile.mkdtemp(dir=folder)), []
        try:
            predict_video(segmenter, path, out, _output(kind, color, alpha, threshold), log=lines.append)
        except Exception as error:  # noqa: BLE001
            lines = [_sentence(error)]
        finally:
            _forget(path, folder)
        made = next(out.glob("*.mp4"), None)  # after frames that cannot be read, too: it is without them
        line = " ".join(lines).replace(str(path), path.name).replace(str(made), made.name if made else "")
        return None, *_shown(gr, made, line)

    private = {"api_visibility": "private", "show_progress_on": result}
    start.click(segment, [given, *settings], [given, result, download, status], preprocess=False, **private)


def launch(segmenter, *, host: str = "127.0.0.1", port: int | None = None, share: bool = False, log=print):
    """Open the page for an inference.Segmenter and return it, a gradio.Blocks, while it is served from threads:
    `close()` ends it. `host` is the address listened on, 0.0.0.0 for every one of the machine's; `port` the first free
    one from 7860 where none is given; `share` opens it also through a tunnel of Gradio's, to anybody, for a week.
    Raises UserError: Gradio is missing, the address cannot be listened on, or the page does not answer."""
    files = tempfile.TemporaryDirectory(prefix="face-segmentation-")
    os.environ["GRADIO_TEMP_DIR"] = files.name  # before the import, which makes a folder there
    for name in ("no_proxy", "NO_PROXY"):  # for what Gradio asks its own server
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost,127.0.0.1", host]))
    gr = _gradio()
    page = _build(gr, segmenter, Path(files.name))
    page.files = files  # which go with the page
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # not of the internet
    try:
        socket.create_server((host, port or 0)).close()  # Gradio tries a hundred ports of a host that is none
        _, local, public = page.launch(
            server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True, ssr_mode=False,
            max_file_size=UPLOAD, state_session_capacity=SESSIONS, css=STYLE, footer_links=[],
            theme=gr.themes.Soft(primary_hue="violet", **fonts),
        )  # fmt: skip
    except OSError:
        where = f"Port {port} of {host}" if port else host
        raise UserError(f"{where} cannot be listened on; choose another with --port or --host.") from None
    except Exception as error:  # Gradio asks its server whether it answers; ValueError, httpx's errors, Exception
        page.close(verbose=False)
        raise UserError(f"The page does not answer at {host} ({reason(error)}).") from error
    log(f"The page is at {local}" + (f" and {public}" if public else ""))
    return page


def serve(segmenter, **options) -> None:
    """`launch`, and wait until Ctrl-C or a termination; what was uploaded is gone then."""
    page = launch(segmenter, **options)
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        threading.Event().wait()
    finally:
        page.close(verbose=False)
        page.files.cleanup()
