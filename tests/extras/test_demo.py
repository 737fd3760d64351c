"""The page, as a person uses it: the real command, and a browser that uploads, looks and downloads."""

import base64
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from conftest import ROOT, one_sentence, python
from PIL import Image

import const
import main
import pictures
from common import UserError
from drawing import Output
from extras import demo

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SAMPLE = const.TEST_DIR / "chris.jpg"


class Server:
    """`main.py demo` in a process of its own, whose temporary files are in `folder`."""

    def __init__(self, folder: Path):
        command = [sys.executable, str(ROOT / "main.py"), "demo", "--weights", "bundled", "--device", "cpu"]
        env = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
        self.folder, self.log = folder, folder.parent / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        for _ in range(3000):
            if found := re.search(r"The page is at (http://127\.0\.0\.1:\d+/)\n", self.log.read_text()):
                self.address = found[1]
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        pytest.fail(self.log.read_text())

    def files(self) -> set[str]:
        return {path.name for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio", minversion="6")
    folder = tmp_path_factory.mktemp("demo") / "tmp"
    folder.mkdir()
    server = Server(folder)
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    assert list(folder.iterdir()) == []
    log, *errors = server.log.read_text().split("Exception in ASGI application")
    assert "Traceback" not in log
    for error in errors:  # the browser still asked for the broken upload, which had just been deleted
        assert re.search(r"FileNotFoundError: .*broken\.jpg", error)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no browser: apt-get install chromium-headless-shell")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(server, browser):
    """The open page; every request of it stays on this machine."""
    page, asked = browser.new_page(viewport={"width": 1280, "height": 1000}), []
    page.set_default_timeout(60_000)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.address)
    yield page
    assert [url for url in asked if not url.startswith((server.address, "data:", "blob:"))] == []
    page.close()


def wait_for(page, words: str) -> str:
    """The status line of the open tab, once these words are in it."""
    line = page.locator(".prose.status:visible", has_text=words)
    line.wait_for()
    return line.inner_text()


def upload(page, path: Path) -> None:
    page.locator("[role=tabpanel]:visible input[type=file]").first.set_input_files(path)


def pixels(page) -> np.ndarray:
    """The result as the browser has decoded it, uint8 (H, W, 4), RGBA."""
    image = page.locator("#result img")
    image.wait_for()
    url = image.evaluate(
        """async image => {
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL();
        }"""
    )
    return decoded(base64.b64decode(url.partition(",")[2]))


def decoded(png: bytes) -> np.ndarray:
    """uint8 (H, W, 4), RGBA."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def download(page, name: str) -> bytes:
    with page.expect_download() as waiting:
        page.get_by_text(f"Download {name}").click()
    assert waiting.value.suggested_filename == name
    return Path(waiting.value.path()).read_bytes()


def test_a_photograph_is_segmented_beside_it(page, server, tmp_path):
    photo = tmp_path / "my photo.jpg"
    shutil.copy(SAMPLE, photo)
    upload(page, photo)
    line = wait_for(page, "of the picture")
    picture = pictures.read_picture(SAMPLE)
    mask = main.Runner("cpu", log=str).load("bundled").predict_image(picture)
    h, w = mask.shape
    fraction = f"{(mask > 0).mean() * 100:.1f} % of the picture"
    assert re.fullmatch(rf"1 face · {fraction} · \d+ ms · {w} × {h} pixels", line)
    overlay = Output().draw("overlay", picture, mask)
    assert np.abs(pixels(page)[..., :3].astype(int) - overlay).mean() < 3  # JPEG
    assert photo.name not in server.files()

    page.get_by_role("radio", name="Cut-out").check()
    wanted = Output().draw("cutout", picture, mask)
    assert (decoded(download(page, "my photo_cutout.png")) == wanted).all()
    page.get_by_role("radio", name="Mask").check()
    page.get_by_role("spinbutton", name=re.compile("Threshold")).fill("0.95")
    page.keyboard.press("Enter")
    wait_for(page, "1 face")
    page.wait_for_function("words => !document.body.innerText.includes(words)", arg=fraction)  # fewer pixels now
    assert set(np.unique(pixels(page)[..., :3])) == {0, 255}


def test_an_example(page):
    page.locator(".gallery-item").first.click()
    assert "512 × 512" in wait_for(page, "1 face")  # the astronaut
    page.get_by_text("Download astronaut_overlay.jpg").wait_for()


def test_a_photograph_that_browsers_do_not_show(page, server, tmp_path):
    Image.open(SAMPLE).save(tmp_path / "scan.tif")
    upload(page, tmp_path / "scan.tif")
    wait_for(page, "1 face")
    page.wait_for_function("() => document.querySelector('.view:not(#result) img').naturalWidth == 512")
    assert "scan.tif" not in server.files()


def test_a_broken_photograph(page, server, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(SAMPLE.read_bytes()[:3000])
    with pytest.raises(pictures.PictureError) as error:
        pictures.read_picture(broken, name=broken.name)
    upload(page, broken)
    assert wait_for(page, "broken.jpg") == f"⚠ {error.value}"
    assert page.locator("#result img").count() == 0
    assert broken.name not in server.files()
    upload(page, SAMPLE)  # the page goes on
    wait_for(page, "1 face")


def test_a_video(page, server, tmp_path):
    frame = cv2.resize(cv2.imread(str(SAMPLE)), (96, 128))
    file = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 128))
    for _ in range(5):
        file.write(frame)
    file.release()
    page.get_by_role("tab", name="Video").click()
    upload(page, tmp_path / "clip.mp4")
    page.get_by_role("radio", name="Mask").check()
    page.locator(".file-preview", has_text="clip").wait_for()
    page.get_by_role("button", name="Segment").click()
    wait_for(page, "5 frames of clip.mp4")
    if find_spec("av"):  # else it is MPEG-4 Part 2, which no browser plays
        page.wait_for_function("() => document.querySelector('[role=tabpanel] video')?.videoWidth == 96")
    (tmp_path / "made.mp4").write_bytes(download(page, "clip_mask.mp4"))
    capture = cv2.VideoCapture(str(tmp_path / "made.mp4"))
    frames = []
    while (got := capture.read())[0]:
        frames.append(got[1])
    assert len(frames) == 5
    assert 0.1 < (frames[0] > 127).mean() < 0.4
    assert "clip.mp4" not in server.files()

    (tmp_path / "broken.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:300])
    upload(page, tmp_path / "broken.mp4")
    page.locator(".file-preview", has_text="broken").wait_for()
    page.get_by_role("button", name="Segment").click()
    assert "broken.mp4 holds no frame" in wait_for(page, "⚠")


# --- Without a browser -----------------------------------------------------------------------------------------------
def test_without_gradio(monkeypatch, capsys):
    for name in ("GRADIO_TEMP_DIR", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main.main(["demo", "--weights", "bundled", "--device", "cpu"]) == 1
    one_sentence(capsys.readouterr().err, 'pip install "gradio>=6"')


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """Where the page's temporary files are, of a page in this process; Gradio remembers the folder of the first one."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    pytest.importorskip("gradio", minversion="6")


@pytest.mark.usefixtures("in_process")
def test_an_address_that_is_not_to_be_had():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"^Port {port} of 127.0.0.1 cannot be listened on; .*--port"):
            demo.launch(None, port=port)
    with pytest.raises(UserError, match=r"^nowhere\.invalid cannot be listened on"):
        demo.launch(None, host="nowhere.invalid")


def test_a_photograph_of_too_many_pixels(monkeypatch):
    monkeypatch.setattr(demo, "PIXELS", 1_000)
    with pytest.raises(UserError, match=r"^chris\.jpg has more than"):
        demo.see(None, SAMPLE)


@pytest.mark.parametrize(
    ("text", "color"),
    [("#8000ff", (128, 0, 255)), ("rgba(128.4, 0, 255, 1)", (128, 0, 255)), ("hsla(120, 50%, 50%, 1)", (64, 191, 64)),
     ("#fff", (255, 255, 255)), ("red", (255, 0, 0)), ("nothing", (128, 0, 255)), (None, (128, 0, 255)),
     ("rgb(", (128, 0, 255)), ("hsl(1.2.3, 0%, 0%)", (128, 0, 255))],
)  # fmt: skip
def test_colours_of_the_picker(text, color):
    assert demo._output("overlay", text, 0.5, 0.5).color == color


def test_uploads_alone_are_deleted(tmp_path):
    """A browser may claim that a sample photograph, or any other file, is what it has uploaded."""
    (tmp_path / "cache").mkdir()
    for path in (tmp_path / "mine.jpg", tmp_path / "cache" / "upload.jpg"):
        path.write_bytes(b"")
        demo._forget(path, tmp_path / "cache")
    demo._forget(tmp_path / "cache" / ".." / "mine.jpg", tmp_path / "cache")
    assert [path.name for path in tmp_path.rglob("*.jpg")] == ["mine.jpg"]


CELL = """
import urllib.request
from pathlib import Path
from types import SimpleNamespace
shell = SimpleNamespace(run_line_magic=print)
names = {"ON_KAGGLE": False, "Path": Path, "bundled": SimpleNamespace(segmenter=None), "get_ipython": lambda: shell}
exec(sys.argv[1], names)
exec(sys.argv[1].replace("PAGE = False", "PAGE = True"), names)
print(urllib.request.urlopen(names["page"].local_url, timeout=60).status)
names["page"].close(verbose=False)
"""


def test_the_notebooks_cell(tmp_path):
    pytest.importorskip("gradio", minversion="6")
    from IPython.core.inputtransformer2 import TransformerManager

    notebook = nbformat.read(ROOT / "notebooks" / "face_segmentation.ipynb", as_version=4)
    (source,) = (cell.source for cell in notebook.cells if "PAGE = False" in cell.source)
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")  # is not there
    env = {**proxies, "no_proxy": "", "NO_PROXY": "", "TMPDIR": tmp_path}
    done = python(CELL, TransformerManager().transform_cell(source), env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No page asked for.\npip install")
    assert done.stdout.endswith("\n200\n")
