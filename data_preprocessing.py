"""CelebAMask-HQ found, checked, and turned into the train and validation sets.

    python data_preprocessing.py                        # the data set in one of the usual places
    python data_preprocessing.py --download             # the official archive (about 3 GB) is fetched first
    python data_preprocessing.py --source PATH          # the official zip, or a folder at or above CelebAMask-HQ
    python data_preprocessing.py --persons              # also each person's silhouette, for cutting people out

Makes `images_train masks_train images_val masks_val` (and `persons_train persons_val`) under --out. The source is only
read: pictures become hard links where the file system has them, so replace a prepared picture, never edit it in place.
A second run does nothing, and a killed one is finished by the next.
"""

import argparse
import glob
import io
import os
import re
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path

import const
from common import DownloadError, UserError, drive_link, exit_code, locked, positive, replacing, sweep, usable_cores
from common import download as fetch

ARCHIVE = "CelebAMask-HQ.zip"
IMAGES = "CelebA-HQ-img"
PARTS = "CelebAMask-HQ-mask-anno"
KAGGLE = (Path("/kaggle/input/celebamaskhq"), Path("/kaggle/input/datasets/ipythonx/celebamaskhq"))
DRIVE_LINK = drive_link(const.CELEB_DRIVE_ID)
MADE = {"images": ".jpg", "masks": f"_{const.FACE_PART}.png", "persons": "_person.png"}  # how names of results end
UNFINISHED = ".preparing"  # a file that is in the prepared folder while it is filled, and after that was cut short
MIN_PICTURE, MAX_PICTURE = 256, 8192  # pixels a side; the official pictures have 1024, a damaged header claims more
MAX_MEMBER = 64 << 20  # bytes of a picture or part; the largest official one has under 1 MB
SEARCH_DEPTH = 5  # /kaggle/input/datasets/ipythonx/celebamaskhq/CelebAMask-HQ is 4 below /kaggle/input
SEARCH_FOLDERS = 5000  # looked into at most, so that `--source /` ends

_NAME = re.compile(r"([0-9]{1,9})(?:\.jpg|_([a-z_]+)\.png)")  # id, part
_MEMBER = re.compile(rf"(?!__MACOSX)(?:.*/)?(?:{IMAGES}|{PARTS}/[0-9]+)/([^/]+)")


class DataError(UserError):
    """What a person has to mend before the data can be prepared, in one sentence."""


class _FaceError(Exception):
    """Why one face is skipped."""


@dataclass
class SplitReport:
    """Faces of one split: `held` is None where the source was not needed."""

    wanted: int
    there: int  # prepared before
    held: int | None = None  # of those wanted, in the source: the picture or any part
    prepared: int = 0  # pairs of picture and mask made now


@dataclass
class Report:
    """What `prepare` found and made; printed, it is what the command says at its end."""

    out: Path
    splits: dict[str, SplitReport] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)  # "{id}: {reason}", sorted by id
    made: Counter = field(default_factory=Counter)  # now: "pair" (its picture a "link" or a "copy"), "person"
    lacking: int = 0  # silhouettes of prepared faces that the source cannot give

    @property
    def idle(self) -> bool:
        return not (self.skipped or self.made)

    def __str__(self) -> str:
        counts = {name: f"{name}: {s.there + s.prepared} of {s.wanted}" for name, s in self.splits.items()}
        lacking = f"; the source lacks {self.lacking} silhouettes" if self.lacking else ""
        if self.idle:
            return f"Nothing to do: {', '.join(counts.values())} faces are prepared in {self.out}{lacking}."
        lines = [f"{counts[n]} faces ({s.prepared} new; the source holds {s.held})" for n, s in self.splits.items()]
        pictures = f"pictures: {self.made['link']} hard links to the source, {self.made['copy']} copies"
        return "\n".join([*lines, f"{pictures}; silhouettes: {self.made['person']} new{lacking}", f"in {self.out}"])


# --- The source ----------------------------------------------------------------------------------------------------
@dataclass
class _Source:
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def link(self, entry, target: Path) -> bool:
        """Whether a hard link to the entry could be made."""
        return False


class Folder(_Source):
    """The official layout in a folder: `CelebA-HQ-img` and `CelebAMask-HQ-mask-anno` side by side in `path`."""

    def index(self, ids: set[int]) -> tuple[dict, dict]:
        """What `_index` makes of it; every folder is listed once."""
        folders = [f"{PARTS}/{number}" for number in {i // const.IDS_PER_FOLDER for i in ids}]
        files = []
        try:
            for folder in (IMAGES, *folders):
                with suppress(FileNotFoundError), os.scandir(self.path / folder) as entries:
                    files += [(entry.name, entry.path) for entry in entries]
        except OSError as error:
            raise DataError(f"cannot read the source {self.path}: {error.strerror}") from error
        return _index(files, ids)

    def read(self, entry: str) -> bytes:
        if not os.path.isfile(entry):
            raise OSError("not a regular file")  # a pipe or a device may never end
        if (size := os.path.getsize(entry)) > MAX_MEMBER:
            raise OSError(f"{size} bytes are too many")
        return Path(entry).read_bytes()

    def link(self, entry: str, target: Path) -> bool:
        try:
            os.link(os.path.realpath(entry), target)  # of a symlink what it leads to
        except OSError:  # another file system, one without links, or not allowed: the report counts it as a copy
            return False
        return True


class Archive(_Source):
    """The official zip, read member by member: nothing but what a split needs is ever unpacked."""

    def index(self, ids: set[int]) -> tuple[dict, dict]:
        """As `Folder.index`. A member's name only tells which face it is of; nothing is ever written under it."""
        try:
            # A file of our own: ZipFile counts the readers of one that it opened itself, and not for several threads.
            self.zip = zipfile.ZipFile(open(self.path, "rb"))  # noqa: SIM115
        except (OSError, NotImplementedError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read the archive {self.path}: {error}") from error
        names = [(_MEMBER.fullmatch(info.orig_filename.replace("\\", "/")), info) for info in self.zip.infolist()]
        return _index([(member[1], info) for member, info in names if member], ids)

    def read(self, entry: zipfile.ZipInfo) -> bytes:
        if entry.file_size > MAX_MEMBER:
            raise OSError(f"{entry.file_size} bytes are too many")
        return self.zip.read(entry)  # checks the CRC


def _index(files, ids: set[int]) -> tuple[dict, dict]:
    """({id: entry} of pictures, {id: {part: entry}} of part masks) from (name, entry); stray files are passed over."""
    pictures, parts = {}, defaultdict(dict)
    for name, entry in files:
        match = _NAME.fullmatch(name)
        if match and int(match[1]) in ids:
            own, key = (parts[int(match[1])], match[2]) if match[2] else (pictures, int(match[1]))
            own[key] = entry
    return pictures, parts


def _is_zip(path: str | Path) -> bool:
    """Whether `path` is a file that ends as a zip archive does; a pipe is not opened, which would wait for a writer."""
    try:
        return os.path.isfile(path) and zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one of several disks
        return False


def _below(top: str | Path) -> Iterator[str]:
    """`top` and the folders below it, the nearest first; hidden ones, and those that may not be read, are left out."""
    levels = (sorted(glob.iglob("./" + "*/" * depth, root_dir=top)) for depth in range(SEARCH_DEPTH + 1))
    return (os.path.join(top, name) for name in islice(chain.from_iterable(levels), SEARCH_FOLDERS))


def _first_in(folders: Iterable[str | Path]) -> Folder | Archive | None:
    """The first data set that lies in one of these folders; the zip only where none is unpacked."""
    archive = None
    for folder in folders:
        if all(os.path.isdir(os.path.join(folder, name)) for name in (IMAGES, PARTS)):
            return Folder(Path(folder))
        path = Path(folder, ARCHIVE)
        archive = archive or (Archive(path) if _is_zip(path) else None)
    return archive


def find_source(path: str | Path | None = None) -> Folder | Archive:
    """The data set at `path` (the zip, or a folder at or above it), or in the usual places without one; DataError when
    there is none. Its contents are listed by `prepare` alone."""
    if path is None:
        places = (const.CELEB_DIR, const.CELEB_DIR / "CelebAMask-HQ", const.DIR_PATH)
        if found := _first_in(places) or _first_in(chain.from_iterable(map(_below, KAGGLE))):
            return found
        raise DataError(
            f"CelebAMask-HQ was not found: run data_preprocessing.py --download, or fetch {DRIVE_LINK} by hand and "
            f"put it at {const.DIR_PATH / ARCHIVE}, or attach the Kaggle dataset ipythonx/celebamaskhq"
        )
    path = Path(path).expanduser()
    if not os.path.exists(path):
        raise DataError(f"no such file or folder: {path}")
    if _is_zip(path):
        return Archive(path)
    if not os.path.isdir(path):
        raise DataError(f"{path} is not a whole zip archive: give the official {ARCHIVE} or the folder it unpacks to")
    if found := _first_in(_below(path)):
        return found
    raise DataError(f"no CelebAMask-HQ in {path}: {IMAGES} and {PARTS} are looked for side by side, in it and below it")


def download(path: Path = const.DIR_PATH / ARCHIVE) -> Archive:
    """Fetches the official archive (about 3 GB) to `path`, unless it is there; a broken transfer is resumed. Raises
    DataError when it fails. Source: https://github.com/switchablenorms/CelebAMask-HQ"""
    if _is_zip(path):
        return Archive(path)
    part = path.with_name(path.name + ".part")
    try:
        with locked(path.with_name(path.name + ".lock"), f"another process is downloading {path}; wait for it"):
            fetch(f"https://drive.google.com/uc?id={const.CELEB_DRIVE_ID}", part, resume=True)
        if not _is_zip(part):
            part.unlink(missing_ok=True)  # a web page in place of the archive, which gdown would resume as if whole
            raise DownloadError("what arrived is no zip archive")
    except DownloadError as error:
        raise DataError(
            f"the download failed ({error}), most often because Google Drive's daily quota is used up: try again "
            f"tomorrow, or fetch {DRIVE_LINK} by hand and put it at {path}"
        ) from error
    os.replace(part, path)
    return Archive(path)


# --- One face ------------------------------------------------------------------------------------------------------
@dataclass
class _Face:
    """One id, what the source has of it, what is to be made, and what was."""

    id: int
    split: str
    picture: object  # the source's entry, or None
    parts: dict  # {part: the source's entry}
    pair: bool
    person: bool
    made: set[str] = field(default_factory=set)
    error: str = ""  # why not all was made

    def target(self, out: Path, kind: str) -> Path:
        return out / f"{kind}_{self.split}" / f"{self.id}{MADE[kind]}"


def build_mask(skin, glasses=None):
    """The visible face, `skin` minus the eyeglasses: (H, W) uint8 arrays, set where > 127, to one of 0 and 255."""
    mask = skin > 127 if glasses is None else (skin > 127) & (glasses <= 127)
    return mask.astype("uint8") * 255


@contextmanager
def _reading(name: str):
    """An error of the source's file, told from a failure to write, which ends the run."""
    try:
        yield
    except Exception as error:  # zipfile and the decoders raise a dozen kinds
        raise _FaceError(f"{name} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _read_part(source: Folder | Archive, face: _Face, part: str):
    """(512, 512) uint8 of a part mask of any PNG mode: the decoder applies a palette, as a viewer does."""
    import cv2
    import numpy as np
    from PIL import PngImagePlugin

    name = f"{face.id:05d}_{part}.png"
    with _reading(name):
        data = source.read(face.parts[part])
        image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        size = image.size
        image.verify()  # every chunk's CRC: decoders differ in what they make of a broken one
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise ValueError("no decoder for it")
    if size != (const.MASK_SIZE, const.MASK_SIZE):
        raise _FaceError(f"{name} is {size[0]}x{size[1]}, not {const.MASK_SIZE}x{const.MASK_SIZE}")
    return mask


def _put_picture(source: Folder | Archive, out: Path, face: _Face) -> bool:
    """The picture, byte for byte; whether it is a hard link. Its header, size and end are checked: a full decode would
    take 20 times as long as all the rest. FF D9 is a JPEG's end and no chance hit: in its data 00 follows each FF."""
    from PIL import JpegImagePlugin

    name = f"{face.id}.jpg"
    with _reading(name):
        data = source.read(face.picture)
        width, height = JpegImagePlugin.JpegImageFile(io.BytesIO(data)).size
    if b"\xff\xd9" not in data[-64:]:
        raise _FaceError(f"{name} is truncated")
    if width != height or not MIN_PICTURE <= width <= MAX_PICTURE:
        raise _FaceError(f"{name} is {width}x{height}, not a square of {MIN_PICTURE} to {MAX_PICTURE} pixels")
    with replacing(face.target(out, "images")) as temp:
        linked = source.link(face.picture, temp)
        if not linked:
            temp.write_bytes(data)
    return linked


def _write_mask(mask, path: Path) -> None:
    import cv2

    path.write_bytes(cv2.imencode(".png", mask)[1].tobytes())


def _put_pair(source: Folder | Archive, out: Path, face: _Face) -> bool:
    """The picture and its mask; whether the picture is a hard link."""
    if face.picture is None:
        raise _FaceError("no picture in the source")
    if _is_whole(face.target(out, "masks")):  # the user's own is kept; one made here would have its picture beside it
        return _put_picture(source, out, face)
    if const.FACE_PART not in face.parts:
        raise _FaceError(f"no {const.FACE_PART} mask in the source")
    parts = [_read_part(source, face, part) for part in (const.FACE_PART, const.GLASSES_PART) if part in face.parts]
    mask = build_mask(*parts)
    with replacing(face.target(out, "masks")) as temp:  # it gets its name last: a picture without one is done again
        _write_mask(mask, temp)
        return _put_picture(source, out, face)


def _make(source: Folder | Archive, out: Path, face: _Face) -> _Face:
    """Makes what is wanted of a face; its silhouette is the union of all parts. OSError is a failure to write."""
    import numpy as np

    try:
        if face.pair:
            face.made |= {"pair", "link" if _put_pair(source, out, face) else "copy"}
        if face.person:
            if not face.parts:
                raise _FaceError("no part masks in the source")
            silhouette = np.maximum.reduce([_read_part(source, face, part) for part in sorted(face.parts)])
            with replacing(face.target(out, "persons")) as temp:
                _write_mask(build_mask(silhouette), temp)
            face.made.add("person")
    except _FaceError as error:
        face.error = f"{face.id}: {error}"
    return face


# --- All of them ---------------------------------------------------------------------------------------------------
def _is_whole(path: str | Path) -> bool:
    """Whether a prepared file is there: not a link to nowhere, nor empty, as a power failure leaves one."""
    return os.path.isfile(path) and os.path.getsize(path) > 0


def _finished(out: Path, split: str, *kinds: str) -> set[int]:
    """The ids of which there is a whole file of each of these kinds."""
    found = []
    for kind in kinds:
        files = {p.name.removesuffix(MADE[kind]): p for p in (out / f"{kind}_{split}").glob(f"*{MADE[kind]}")}
        found.append({int(name) for name, path in files.items() if name.isdecimal() and _is_whole(path)})
    return set.intersection(*found)


def is_prepared(out: str | Path) -> bool:
    """Whether `out` holds pictures of a set, made here or a person's own, and no preparation was cut short."""
    return any(Path(out).glob("images_*/[!.]*")) and not Path(out, UNFINISHED).exists()


def prepare(
    source,
    out,
    *,
    workers=None,
    persons=False,
    ids_train=const.IDS_TRAIN,
    ids_val=const.IDS_VAL,
    ignored=(),
    progress=True,
) -> Report:
    """Makes the train and validation sets in `out` as far as `source` goes, and leaves what is there alone.

    `source` is what `find_source` returned, or its argument, or a function that finds it, looked at only if something
    is missing. `out` gets images_{split}/{id}.jpg, the source's bytes, and masks_{split}/{id}_skin.png, 512x512 8-bit
    grey, 0 or 255; with `persons` also persons_{split}/{id}_person.png, the union of all parts, in the same form. Part
    masks that `ignored` names are taken for absent. A face that cannot be made is named in the report's `skipped`; what
    stops everything is a DataError, or an OSError where `out` cannot be written.
    """
    report, todo = Report(Path(out)), {}
    ids = {"train": set(ids_train), "val": set(ids_val)}
    for split, wanted in ids.items():
        for kind in MADE:
            sweep(report.out / f"{kind}_{split}")
        pairs = wanted - _finished(report.out, split, "images", "masks")
        todo[split] = pairs, wanted - _finished(report.out, split, "persons") if persons else set()
        report.splits[split] = SplitReport(len(wanted), len(wanted - pairs))
    if any(pairs or silhouettes for pairs, silhouettes in todo.values()):
        if callable(source):
            source = source()
        elif not isinstance(source, _Source):
            source = find_source(source)
        pictures, parts = source.index(ids["train"] | ids["val"])
        held = pictures.keys() | parts.keys()
        if not held:
            raise DataError(f"{source} holds none of the faces wanted")
        faces = []
        for split, (pairs, silhouettes) in todo.items():
            report.splits[split].held = len(ids[split] & held)
            for i in sorted((pairs | silhouettes) & held):
                own = {part: entry for part, entry in parts.get(i, {}).items() if part not in ignored}
                faces.append(_Face(i, split, pictures.get(i), own, i in pairs, i in silhouettes))
        if faces:
            _make_all(faces, source, report, workers, progress)
        for split, (_, silhouettes) in todo.items():
            lacking = silhouettes - _finished(report.out, split, "persons")
            report.lacking += len(lacking & _finished(report.out, split, "images", "masks"))
    if (unfinished := report.out / UNFINISHED).exists():  # else a read-only file system refuses
        unfinished.unlink(missing_ok=True)
    return report


def _make_all(faces: list[_Face], source, report: Report, workers: int | None, progress: bool) -> None:
    """Makes every face and counts it in the report."""
    import cv2  # noqa: F401  imported once here, not by all threads at once
    from PIL import JpegImagePlugin  # noqa: F401
    from tqdm.auto import tqdm

    for kind in MADE if any(face.person for face in faces) else ("images", "masks"):
        for split in report.splits:
            (report.out / f"{kind}_{split}").mkdir(parents=True, exist_ok=True)
    if any(face.pair for face in faces):
        (report.out / UNFINISHED).touch()
    hidden = None if progress else True  # None: shown on a terminal alone
    make = partial(_make, source, report.out)
    # Threads, as OpenCV and zlib let go of the interpreter; processes would each read the zip's 420,000 names.
    with ThreadPoolExecutor(workers or usable_cores()) as pool, closing(pool.map(make, faces)) as made:
        for face in tqdm(made, total=len(faces), unit="face", disable=hidden):  # after an error only those in hand
            report.splits[face.split].prepared += "pair" in face.made
            report.made.update(face.made)
            report.skipped += [face.error] if face.error else []


def ensure(out: str | Path, log=print) -> Path:
    """The folder `out` once it holds prepared sets; if it does not, they are made from the data set in it or in the
    usual places. Raises DataError where there is none."""
    out = Path(out)
    if not is_prepared(out):
        try:
            source = find_source(out)
        except DataError as error:
            if (out / UNFINISHED).exists():
                how = f"run `python data_preprocessing.py --out {out}` with its --source again"
                raise DataError(f"The preparation of {out} was cut short; {how}.") from error
            source = find_source()
        log(f"Preparing {out} from {source}")
        for reason in prepare(source, out).skipped:
            log(f"skipped: {reason}")
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes the train and validation sets from CelebAMask-HQ.")
    parser.add_argument("--source", metavar="PATH", help="the official zip, or a folder at or above CelebAMask-HQ")
    parser.add_argument("--out", metavar="DIR", type=Path, default=const.CELEB_DIR, help="default: %(default)s")
    parser.add_argument("--workers", metavar="N", type=positive, help="threads (default: the usable cores)")
    parser.add_argument("--download", action="store_true", help="fetch the official archive first, about 3 GB")
    parser.add_argument("--persons", action="store_true", help="also make each person's silhouette")
    args = parser.parse_args(argv)
    if args.download and args.source:
        parser.error("--download fetches the source, so give no --source beside it")

    def work() -> None:
        given = find_source(args.source) if args.source else None  # a wrong one is named even if nothing is missing

        def source() -> Folder | Archive:
            found = given or (download() if args.download else find_source())
            print(f"source: {found}", flush=True)
            return found

        report = prepare(source, args.out, workers=args.workers, persons=args.persons)
        print(report)
        for sentence in report.skipped:
            print(f"skipped: {sentence}", file=sys.stderr)
        if report.skipped:
            raise DataError(f"{len(report.skipped)} faces of the source could not be prepared, see above")

    return exit_code(work, "stopped; the next run goes on from here")


if __name__ == "__main__":
    sys.exit(main())
