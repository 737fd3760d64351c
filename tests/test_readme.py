"""What the README shows is run as it stands."""

import importlib
import re
import shutil

import pytest
from conftest import ROOT, no_traceback, python
from PIL import Image

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def place(tmp_path):
    """An empty folder with a photo.jpg in it."""
    shutil.copy(ROOT / "test_path" / "chris.jpg", tmp_path / "photo.jpg")
    return tmp_path


def test_the_python_example(place):
    code = next(b for b in BLOCKS if "runner.predict_image" in b)
    done = no_traceback(python(code + "\nprint(mask.shape, mask.dtype, (mask > 0).mean())", cwd=place))
    assert done.returncode == 0, done.stderr
    w, h = Image.open(place / "photo.jpg").size
    assert f"({h}, {w}) uint8" in done.stdout
    assert 0.1 < float(done.stdout.split()[-1]) < 0.5  # the face fills a good part of this photograph


def test_what_it_points_to_is_there():
    targets = re.findall(r"\]\(([^)#]+)[#)]", README)
    assert targets
    for target in targets:
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    named = re.findall(r"`([a-z_/]+(?:\.py|\.sh|/))`", README)
    named += re.findall(r"bash ([a-z_/]+\.sh)", README)
    assert "robust/" in named
    for name in named:
        assert (ROOT / name).exists() or name == "predictions/" or name == "runs/", name  # both made by commands


def test_the_contents_name_the_sections():
    sections = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert {"Dataset", "Model", "Augmentations", "Evaluation", "Reproducing the experiment"} <= set(sections)
    linked = re.findall(r"\[([^]]+)\]\(#([a-z-]+)\)", README)
    assert linked == [(title, title.lower().replace(" ", "-")) for title in sections]


def test_it_is_one_page():
    assert len(README.split()) <= 1900


def test_no_picture_of_docs_is_left_over():
    shown = README + (ROOT / "weights" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").iterdir():
        assert f"docs/{path.name}" in shown, path.name


def test_the_options_it_names_exist(capsys):
    """Every option is one of the script or module in its own snippet, or in a snippet without any, of some command."""

    def shown(module: str, *command: str) -> str:
        with pytest.raises(SystemExit, match=r"^0$"):
            importlib.import_module(module).main([*command, "--help"])
        return capsys.readouterr().out

    helps = {name: shown("main", name) for name in ("train", "predict", "evaluate", "export", "demo")}
    helps["data_preprocessing.py"] = shown("data_preprocessing")
    helps |= {name: shown(name) for name in sorted(set(re.findall(r"python -m (studies\.[a-z_]+)", README)))}
    fenced = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
    snippets = [line for block in fenced.findall(README) for line in block.splitlines()]
    snippets += re.findall(r"`([^`]+)`", fenced.sub("", README))
    checked = set()
    for snippet in snippets:
        if snippet.startswith("pip "):
            continue
        snippet = re.sub(r"torchrun \S+ ", "", snippet)  # torchrun's own options
        words = re.split(r"[\s=]+", snippet)
        own = [text for name, text in helps.items() if name in words]
        for option in re.findall(r"(?<!\S)\[?(--[a-z][a-z-]+)", snippet):
            assert any(option in text for text in own or helps.values()), snippet
            checked.add(option)
    assert {"--passes", "--frame-stride", "--occluders", "--val-limit", "--persons", "--scenes"} <= checked
