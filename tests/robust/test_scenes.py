"""Composed pictures and drawn occluders: what must hold whatever is drawn."""

import cv2
import numpy as np
import pytest

from robust import occluders, scenes


@pytest.fixture(scope="module")
def faces(prepared) -> scenes.FaceStore:
    return scenes.FaceStore(prepared / "images_train", prepared / "masks_train", prepared / "persons_train")


@pytest.fixture(scope="module")
def composer(faces, tmp_path_factory) -> scenes.SceneComposer:
    folder = tmp_path_factory.mktemp("backgrounds")
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(120, 200), (300, 180), (60, 90)]):
        photo = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), shape[::-1])
        cv2.imwrite(str(folder / f"{i}.jpg"), photo)
    return scenes.SceneComposer(faces, scenes.PhotoStore(scenes.find_backgrounds(folder)))


def test_faces_are_read_with_their_partners(faces, prepared):
    assert len(faces) == 12
    face = faces[5]
    assert face.image.shape == (512, 512, 3)
    assert face.mask.shape == face.person.shape == (512, 512)
    assert np.unique(face.mask).tolist() == [0, 255]
    want = cv2.imread(str(prepared / "masks_train" / "16005_skin.png"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(face.mask, want)
    assert (face.person[face.mask > 0] > 0).mean() > 0.95  # a face is part of its person
    assert faces[5] is face  # decoded once
    without = scenes.FaceStore(prepared / "images_train", prepared / "masks_train", limit=2)
    assert len(without) == 2
    assert without[0].person is None


@pytest.mark.parametrize("size", [64, 160])
def test_composed_target_is_binary(size, composer):
    shown = []
    for seed in range(40):
        image, target = composer.compose(np.random.default_rng(seed), seed % 12, size)
        assert image.shape == (size, size, 3)
        assert target.shape == (size, size)
        assert image.dtype == target.dtype == np.uint8
        assert image.flags["C_CONTIGUOUS"]
        shown.append((target > 127).mean())
    shown = np.array(shown)
    assert (shown == 0).any()  # some without a face,
    assert (shown > 0.2).any()  # some close up,
    assert ((shown > 0) & (shown < 0.08)).any()  # some small


def test_the_data_set_gives_binary_float_masks(composer):
    pictures = scenes.Scenes(composer, 64)
    assert len(pictures) == 12
    for index in range(0, 12, 2):
        image, target = pictures[index, 1000 + index]
        assert image.shape == (3, 64, 64)
        assert str(image.dtype) == str(target.dtype) == "torch.float32"
        assert target.shape == (1, 64, 64)
        assert 0 <= target.min() <= target.max() <= 1
        soft = ((target > 0.02) & (target < 0.98)).float().mean()  # nothing between but on the contour
        assert soft < 0.15


def test_everything_is_seeded(composer):
    for kind in ("compose", "single_face_picture", "scene", "empty"):
        make = getattr(composer, kind)
        first, again = (make(np.random.default_rng(7), 3, 96) for _ in range(2))
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
        assert not np.array_equal(first[0], make(np.random.default_rng(8), 3, 96)[0])
    pictures = scenes.Scenes(composer, 64)
    assert all(a.equal(b) for a, b in zip(pictures[2, 99], pictures[2, 99], strict=True))
    assert not pictures[2, 99][0].equal(pictures[2, 100][0])


def test_empty_is_empty(composer):
    for seed in range(40):
        image, target = composer.empty(np.random.default_rng(seed), seed % 12, 96)
        assert image.shape == (96, 96, 3)
        assert not target.any()


def test_without_photographs_colours_are_drawn(faces):
    alone = scenes.SceneComposer(faces, scenes.PhotoStore([]))
    for seed in range(12):
        image, target = alone.compose(np.random.default_rng(seed), 0, 64)
        assert image.shape[:2] == target.shape == (64, 64)
    assert scenes.PhotoStore([]).draw(np.random.default_rng(0)).shape == (512, 512, 3)


def test_a_photograph_of_one_pixel():
    rng, pixel = np.random.default_rng(0), np.full((1, 1, 3), 9, np.uint8)
    assert (scenes.background(rng, pixel, (48, 64)) == 9).all()
    assert (occluders.photo_patch(rng, pixel) == 9).all()


def test_stored_faces_are_never_painted_on(composer):
    before = [(composer.faces[i].image.copy(), composer.faces[i].mask.copy()) for i in range(12)]
    for seed in range(30):
        composer.compose(np.random.default_rng(seed), seed % 12, 64)
    for i, (image, mask) in enumerate(before):
        np.testing.assert_array_equal(composer.faces[i].image, image)
        np.testing.assert_array_equal(composer.faces[i].mask, mask)


def test_held_out_backgrounds_are_disjoint(tmp_path):
    for i in range(23):
        (tmp_path / f"{i:03d}.jpg").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    train, held = scenes.find_backgrounds(tmp_path), scenes.find_backgrounds(tmp_path, held_out=True)
    assert not set(train) & set(held)
    assert len(train) + len(held) == 23
    assert [p.name for p in held] == ["004.jpg", "009.jpg", "014.jpg", "019.jpg"]


# --- Geometry -------------------------------------------------------------------------------------------------------
def test_a_face_lands_where_it_is_asked_for(faces):
    face = faces[0]
    width = np.ptp(np.flatnonzero(face.mask.any(0))) + 1
    for scale, centre in ((0.2, (80, 60)), (0.5, (100, 110)), (0.7, (190, 210))):
        matrix = scenes.similarity(occluders.FACE_WIDTH * scale, 0, centre)
        mask = scenes.warp(face.mask, matrix, (400, 400)) > 127
        assert np.ptp(np.flatnonzero(mask.any(0))) + 1 == pytest.approx(width * scale, abs=2.5)
        x, y = matrix @ np.array([*occluders.FACE_CENTRE, 1.0])
        assert (x, y) == pytest.approx(centre, abs=1e-3)
        source, moved = (np.argwhere(m > 0).mean(0) for m in (face.mask, mask))  # (y, x)
        want = matrix @ np.array([source[1], source[0], 1.0])
        assert moved[::-1] == pytest.approx(want, abs=0.6)  # no half pixel lost on the way down


def test_the_near_person_hides_the_far_one(faces):
    face = faces[0]
    matrix = scenes.similarity(120, 0, (64, 64))
    canvas, target = np.zeros((128, 128, 3), np.uint8), np.full((128, 128), 255, np.uint8)
    image, after = scenes.paste(canvas, target, face, matrix)
    opacity, mask = scenes.warp(face.person, matrix, (128, 128)), scenes.warp(face.mask, matrix, (128, 128))
    np.testing.assert_array_equal(after[opacity > 127], mask[opacity > 127])
    assert (after[opacity <= 127] == 255).all()
    assert not image[opacity == 0].any()
    assert not canvas.any()


# --- Occluders ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [*occluders.KINDS, "glasses", None])
def test_covers_only_take_away(kind, faces):
    face, other = faces[1], faces[2]
    kept = face.image.copy(), face.mask.copy(), other.image.copy()
    taken = []
    for seed in range(6):
        image, mask, opacity = occluders.draw_occluder(
            np.random.default_rng(seed), face.image, face.mask, photo=other.image, other=(other.image, other.mask),
            kind=kind,
        )  # fmt: skip
        assert image.shape == (512, 512, 3)
        assert image.dtype == mask.dtype == opacity.dtype == np.uint8
        assert mask.shape == opacity.shape == (512, 512)
        assert not (mask & ~face.mask).any()  # never larger
        assert set(np.unique(mask)) <= {0, 255}
        gone = (face.mask > 0) & (mask == 0)
        if kind != "glasses":  # of which the lenses are clear, and yet no face
            assert gone[(face.mask > 0) & (opacity > 127)].all()
            assert not gone[opacity < 127].any()
        taken.append(gone.mean())
        again = occluders.draw_occluder(
            np.random.default_rng(seed), face.image, face.mask, photo=other.image, other=(other.image, other.mask),
            kind=kind,
        )  # fmt: skip
        for a, b in zip((image, mask, opacity), again, strict=True):
            np.testing.assert_array_equal(a, b)
    assert max(taken) > 0.005
    for before, after in zip(kept, (face.image, face.mask, other.image), strict=True):
        np.testing.assert_array_equal(before, after)


def test_glasses_are_cut_from_the_target(faces):
    face = next(faces[i] for i in range(12) if all(faces[i].mask[y, x] for x, y in occluders.EYES))
    for seed in range(10):
        _, mask, _ = occluders.draw_occluder(np.random.default_rng(seed), face.image, face.mask, kind="glasses")
        assert not any(mask[y, x] for x, y in occluders.EYES)  # even through clear lenses
        assert mask[occluders.MOUTH[1], occluders.MOUTH[0]] == face.mask[occluders.MOUTH[1], occluders.MOUTH[0]]


def test_blending():
    over, under = np.full((4, 4, 3), 200, np.uint8), np.full((4, 4, 3), 100, np.uint8)
    for alpha, want in ((0.0, 100), (1.0, 200), (0.25, 125)):
        mixed = occluders.blend(over, under, np.full((4, 4), alpha, np.float32))
        np.testing.assert_allclose(mixed, want, atol=1)
