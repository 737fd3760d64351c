"""The two datasets, what the training transform really does, and who sees which random numbers."""

import shutil
import warnings

import cv2
import numpy as np
import pytest
import torch
from conftest import TRAIN_IDS, VAL_IDS
from torch.utils.data import DataLoader

import const
import dataset
from common import UserError
from data_preprocessing import DataError
from robust import scenes


def celeb(prepared, transform=None, **options) -> dataset.Celeb:
    return dataset.Celeb(prepared / "images_train", prepared / "masks_train", transform, **options)


def write_pair(folder, stem: str, value: int = 0) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "images" / f"{stem}.jpg"), np.full((16, 16, 3), value, np.uint8))
    cv2.imwrite(str(folder / "masks" / f"{stem}_skin.png"), np.full((16, 16), 255, np.uint8))


# --- Celeb and TestCeleb --------------------------------------------------------------------------------------------
def test_items(prepared):
    plain, half = celeb(prepared), celeb(prepared, dataset.val_transform(64))
    assert len(plain) == len(TRAIN_IDS)
    assert [int(image.stem) for image, _ in plain.pairs] == list(TRAIN_IDS)
    for faces, side in ((plain, 256), (half, 64)):
        image, mask = faces[3]
        assert image.shape == (3, side, side)
        assert mask.shape == (1, side, side)
        assert image.dtype == mask.dtype == torch.float32
        assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert plain[0][0].min() >= 0
    assert 0.5 < plain[0][0].max() <= 1
    want = cv2.imread(str(prepared / "masks_train" / "16000_skin.png"), cv2.IMREAD_GRAYSCALE) > 127  # 512x512
    assert plain[0][1].mean().item() == pytest.approx(want.mean(), abs=0.005)


def test_normalisation_is_that_of_imagenet(prepared):
    plain, normal = celeb(prepared)[0][0], celeb(prepared, dataset.val_transform(256))[0][0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (const.IMAGENET_MEAN, const.IMAGENET_STD))
    torch.testing.assert_close(normal, (plain - mean) / std, atol=1e-4, rtol=1e-4)
    array = (plain * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_allclose(scenes.normalize(array), normal.permute(1, 2, 0), atol=1e-4)


@pytest.mark.parametrize("size", [192, 256, 384])
def test_a_mask_lies_on_its_picture_at_every_size(size):
    rows, columns = np.mgrid[:512, :512]
    disc = ((rows - 200.3) ** 2 + (columns - 290.7) ** 2 < 120**2).astype(np.uint8)
    out = dataset.val_transform(size)(image=np.dstack([disc * 255] * 3), mask=disc)
    light = out["image"][..., 0] - out["image"].min()
    for axis in (0, 1):
        at = np.arange(size)
        image, mask = (np.average(at, weights=p.sum(1 - axis)) for p in (light, out["mask"].astype(float)))
        assert image == pytest.approx(mask, abs=0.27)  # pixels: half a one of the 512


def test_order_is_numerical(tmp_path):
    for stem in ("10", "9", "0", "100", "2"):
        write_pair(tmp_path, stem)
    (tmp_path / "images" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "images" / "notes.txt").write_text("x")
    faces = dataset.Celeb(tmp_path / "images", tmp_path / "masks")
    assert [image.stem for image, _ in faces.pairs] == ["0", "2", "9", "10", "100"]
    assert [mask.name for _, mask in faces.pairs] == [f"{i}_skin.png" for i in (0, 2, 9, 10, 100)]
    assert [p.stem for p in dataset.TestCeleb(tmp_path / "images").paths] == ["0", "2", "9", "10", "100"]
    assert len(dataset.Celeb(tmp_path / "images", tmp_path / "masks", limit=2)) == 2


def test_pairs_are_checked_when_made(tmp_path):
    for stem in ("1", "2"):
        write_pair(tmp_path, stem)
    (tmp_path / "masks" / "2_skin.png").unlink()
    with pytest.raises(DataError, match=r"2\.jpg"):
        dataset.Celeb(tmp_path / "images", tmp_path / "masks")
    write_pair(tmp_path, "2")
    (tmp_path / "images" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"1_skin\.png"):
        dataset.Celeb(tmp_path / "images", tmp_path / "masks")
    for suffix in ("jpg", "png"):
        shutil.copy(tmp_path / "images" / "2.jpg", tmp_path / "images" / f"1.{suffix}")
    with pytest.raises(DataError, match="differ only in the suffix"):
        dataset.Celeb(tmp_path / "images", tmp_path / "masks")


def test_empty_missing_and_broken(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        dataset.Celeb(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(DataError, match="no pictures"):
        dataset.TestCeleb(tmp_path / "images")
    with pytest.raises(DataError, match="not a folder"):
        dataset.Celeb(tmp_path / "nowhere", tmp_path / "masks")
    write_pair(tmp_path, "7")
    (tmp_path / "images" / "7.jpg").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"7\.jpg"):
        dataset.Celeb(tmp_path / "images", tmp_path / "masks")[0]
    write_pair(tmp_path, "7")
    (tmp_path / "masks" / "7_skin.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"7_skin\.png"):
        dataset.Celeb(tmp_path / "images", tmp_path / "masks")[0]


def test_pictures_alone(prepared, tmp_path):
    shutil.copytree(prepared / "images_val", tmp_path / "in")
    pictures = dataset.TestCeleb(tmp_path / "in", dataset.val_transform(64))
    assert len(pictures) == len(VAL_IDS)
    batch = next(iter(DataLoader(pictures, 3)))
    assert batch.shape == (3, 3, 64, 64)
    assert batch.dtype == torch.float32
    assert dataset.TestCeleb(tmp_path / "in")[0].shape == (3, 256, 256)


# --- (1) The transform does what the original meant -----------------------------------------------------------------
GREY = 100  # of the plain picture: unlike the hole's 120 after ColorJitter at p 0


@pytest.fixture(scope="module")
def drops() -> dict[str, np.ndarray]:
    """600 draws on a plain picture with a whole mask: what the hole did to each."""
    side = 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an unknown argument only warns unless the Compose is strict
        transform = dataset.train_transform(side)
        transform.transforms[1].p = 0.0  # no jitter here, so that 120 is exactly the hole
        picture, mask = np.full((side, side, 3), GREY, np.uint8), np.ones((side, side), np.float32)
        rows = []
        for seed in range(600):
            dataset.reseed(transform, seed)
            out = transform(image=picture, mask=mask)
            image = out["image"] * const.IMAGENET_STD + np.array(const.IMAGENET_MEAN)  # back to [0, 1]
            filled = np.abs(image * 255 - const.HOLE_FILL).max(2) < 0.5
            other = np.abs(image * 255 - GREY).max(2) < 0.5
            assert (filled | other).all()
            rows.append((filled, out["mask"] == 0))
    return {"image": np.array([r[0] for r in rows]), "mask": np.array([r[1] for r in rows])}


def test_the_share_that_is_dropped(drops):
    np.testing.assert_array_equal(drops["image"], drops["mask"])  # the mask is 0 exactly under the hole
    fractions = drops["image"].mean((1, 2))
    assert (fractions > 0).mean() == pytest.approx(const.HOLE_P, abs=0.06)
    # A height of 0.2-0.7 and a width of 0.3-0.8 of the picture: 0.45 * 0.55 on average, of seven pictures in ten.
    assert fractions[fractions > 0].mean() == pytest.approx(0.45 * 0.55, abs=0.03)
    assert fractions.mean() == pytest.approx(0.7 * 0.45 * 0.55, abs=0.025)


def test_one_hole_of_the_meant_size(drops):
    heights, widths = [], []
    for hole in drops["image"]:
        if hole.any():
            rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
            box = hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert box.all()  # one rectangle
            heights.append(box.shape[0] / 64)
            widths.append(box.shape[1] / 64)
    assert 0.18 < min(heights) < 0.27
    assert 0.63 < max(heights) <= 0.71
    assert 0.28 < min(widths) < 0.37
    assert 0.73 < max(widths) <= 0.81


def test_arguments_that_matter():
    transform = dataset.train_transform(96)
    assert [type(t).__name__ for t in transform.transforms] == [
        "Resize", "ColorJitter", "HorizontalFlip", "CoarseDropout", "Normalize",
    ]  # fmt: skip
    resize, jitter, flip, hole, _ = transform.transforms
    assert (resize.height, resize.width) == (96, 96)
    assert tuple(jitter.hue) == (-0.2, 0.2)
    for name in ("brightness", "contrast", "saturation"):
        assert tuple(getattr(jitter, name)) == (0.7, 1.3)
    assert (jitter.p, flip.p, hole.p) == (0.5, 0.5, 0.7)
    assert tuple(hole.num_holes_range) == (1, 1)
    assert tuple(hole.hole_height_range) == (0.2, 0.7)
    assert tuple(hole.hole_width_range) == (0.3, 0.8)
    assert (hole.fill, hole.fill_mask) == (120, 0)
    assert len(dataset.train_transform(96, cutout="none").transforms) == 4


def test_an_unknown_argument_is_refused(monkeypatch):
    import albumentations as A

    real = A.CoarseDropout
    monkeypatch.setattr(A, "CoarseDropout", lambda **given: real(**given, max_holes=1))  # a name of older versions
    with pytest.warns(UserWarning, match="max_holes"), pytest.raises(ValueError, match="max_holes"):
        dataset.train_transform(64)


def test_transforms_are_drawn_independently():
    """Compose.set_random_seed gives every transform the same seed, which ties mirroring to the hole."""
    transform = dataset.train_transform(32)
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, :16] = (200, 60, 60)
    mask = np.ones((32, 32), np.float32)
    seen = []
    for seed in range(600):
        dataset.reseed(transform, seed)
        out = transform(image=picture, mask=mask)
        corner = out["image"][[0, 0, -1, -1], [0, -1, 0, -1], 0]  # the hole hides two of them at most
        seen.append(((out["mask"] == 0).any(), max(corner[::2]) < max(corner[1::2])))
    table = np.array(seen)
    assert 0.4 < table[:, 1].mean() < 0.6
    assert abs(np.corrcoef(table.T)[0, 1]) < 0.15


def test_the_mask_follows_the_flip(prepared):
    faces = celeb(prepared, dataset.train_transform(64, cutout="none"))
    whole = celeb(prepared, dataset.val_transform(64))[0][1]
    ways = {("same" if torch.equal(m, whole) else "mirrored" if torch.equal(m, whole.flip(2)) else "other")
            for m in (faces[0, seed][1] for seed in range(12))}  # fmt: skip
    assert ways == {"same", "mirrored"}


# --- (2) seeded, (3) every epoch, (4) every worker ------------------------------------------------------------------
def epoch_of(loader) -> list[torch.Tensor]:
    return [torch.cat([i.flatten(1), m.flatten(1)], 1) for i, m in loader]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_same_seed_gives_the_same_epochs_whatever_the_workers(prepared):
    faces = celeb(prepared, dataset.train_transform(32))
    runs = {}
    for workers in (0, 1, 2):
        loader = dataset.make_loader(faces, 4, train=True, workers=workers)
        epochs = []
        for epoch in range(2):
            loader.sampler.epoch = epoch
            epochs.append(epoch_of(loader))
        runs[workers] = epochs
    for workers in (1, 2):
        assert same(runs[0][0], runs[workers][0])
        assert same(runs[0][1], runs[workers][1])
    assert not same(runs[0][0], runs[0][1])  # another epoch, other numbers
    loader = dataset.make_loader(faces, 4, train=True, seed=const.SEED + 1)
    assert not same(runs[0][0], epoch_of(loader))
    loader = dataset.make_loader(faces, 4, train=True)
    loader.sampler.epoch = 1  # a resumed run starts here
    assert same(runs[0][1], epoch_of(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_leaves_the_random_numbers_of_dropout_alone(workers, prepared):
    loader = dataset.make_loader(celeb(prepared, dataset.train_transform(32)), 4, train=True, workers=workers)
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        for _ in loader:
            pass
        drawn.append(torch.rand(()).item())
    torch.manual_seed(5)
    assert drawn == [torch.rand(()).item()] * 2


class OneFace(dataset.Celeb):
    """The same face under many indices, so that all that differs between items is drawn."""

    def __len__(self):
        return 12

    def __getitem__(self, key):
        return super().__getitem__((0, key[1]) if isinstance(key, tuple) else 0)


def all_differ(epochs: list[list[torch.Tensor]]) -> bool:
    """Whether two epochs of `OneFace`, dealt to two workers in turn, are as different as chance makes them: one draw
    in seven has neither hole nor other colours, so that a few of the 24 may be alike."""
    first, second = epochs
    by_place = sum(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    by_worker = sum(torch.equal(e[i], e[i + 1]) for e in epochs for i in range(0, len(e), 2))
    different = {item.numpy().tobytes() for epoch in epochs for item in epoch}
    return len(different) >= 18 and by_place <= 2 and by_worker <= 2


@pytest.mark.parametrize("persistent", [False, True])
def test_a_plain_loader_differs_in_every_epoch_and_worker(persistent, prepared):
    faces = OneFace(prepared / "images_train", prepared / "masks_train", dataset.train_transform(32))

    def epochs(seed):
        torch.manual_seed(seed)
        loader = DataLoader(faces, 1, num_workers=2, persistent_workers=persistent)
        return [epoch_of(loader) for _ in range(2)]

    first = epochs(42)
    assert all_differ(first)
    again = epochs(42)
    assert same(first[0], again[0])
    assert same(first[1], again[1])
    assert not same(first[0], epochs(43)[0])


def test_every_worker_of_make_loader_differs(prepared):
    faces = OneFace(prepared / "images_train", prepared / "masks_train", dataset.train_transform(32))
    loader = dataset.make_loader(faces, 1, train=True, workers=2)
    epochs = []
    for epoch in range(2):
        loader.sampler.epoch = epoch
        epochs.append(epoch_of(loader))
    assert all_differ(epochs)


def test_batches(prepared):
    faces = celeb(prepared, dataset.val_transform(32))
    train, val = (dataset.make_loader(faces, 5, train=train) for train in (True, False))
    assert [len(i) for i, _ in train] == [5, 5]  # the last two are dropped
    assert [len(i) for i, _ in val] == [5, 5, 2]
    in_order = torch.cat([m for _, m in val])
    for epoch in range(2):  # validation never shuffles
        val.sampler.epoch = epoch
        assert torch.equal(in_order, torch.cat([m for _, m in val]))
    indices = [i for i, _ in dataset.EpochSampler(12, seed=1, shuffle=True)]
    assert sorted(indices) == list(range(12))
    assert indices != list(range(12))
