"""Paths and hyperparameters: the original's, and the defaults of prediction, with the reason beside each number."""

from pathlib import Path

VERSION = "1.0.0"

# --- Paths, rooted at this file, so that every command works from any directory -----------------------------------
DIR_PATH = Path(__file__).resolve().parent
CELEB_DIR = DIR_PATH / "CelebAMask-HQ"  # the data set, and the prepared folders beside it
TEST_DIR = DIR_PATH / "test_path"  # sample photographs in
PREDICTIONS_DIR = DIR_PATH / "predictions"  # masks and overlays out
WEIGHTS_DIR = DIR_PATH / "weights"  # the bundled weights
RUNS_DIR = DIR_PATH / "runs"  # one folder a training run
MODEL_PATH = DIR_PATH / "model.best.pth"  # one's own weights, or the published ones, come first
CACHE_DIR = DIR_PATH / ".cache"  # the published weights, once fetched and checked, and OpenVINO's networks

# --- The data: CelebAMask-HQ (Lee et al., CVPR 2020, https://github.com/switchablenorms/CelebAMask-HQ) --------------
CELEB_DRIVE_ID = "1badu11NqxGf6qM3PTTooQDJvQbejgbTv"  # CelebAMask-HQ.zip, about 3 GB
IDS_PER_FOLDER = 2000  # annotation folder N holds the ids N * 2000 ... N * 2000 + 1999
IDS_TRAIN = range(16000, 18000)  # annotation folder 8
IDS_VAL = range(24000, 26000)  # annotation folder 12
MASK_SIZE = 512  # pixels; the part masks are drawn at 512x512 for pictures of 1024x1024
FACE_PART = "skin"  # the whole face oval, eyes, brows, nose and mouth filled in; no ears, neck, hair
GLASSES_PART = "eye_g"  # eyeglasses, cut out of the mask

# --- The original's training ---------------------------------------------------------------------------------------
MODEL = "deeplabv3"
IMG_SIZE = 512
BATCH_SIZE = 4  # what a 16 GB card held at 512x512 in fp32
EPOCHS = 8
LR = 1e-4
PATIENCE = 1  # epochs without a better validation loss; after one more ReduceLROnPlateau divides the rate by ten
SEED = 42
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HOLE_HEIGHT = (0.2, 0.7)  # CoarseDropout: one hole, in parts of the image's height ...
HOLE_WIDTH = (0.3, 0.8)  # ... and width,
HOLE_FILL = 120  # grey, on the 0-255 image,
HOLE_P = 0.7  # on seven pictures of ten; the mask is 0 under it

# --- Prediction ----------------------------------------------------------------------------------------------------
WEIGHTS_DRIVE_ID = "1FpJpDiMI1hpuCXA0lnsCrxpXivjlveh6"  # the published DeepLabV3 checkpoint
THRESHOLD = 0.5  # probability
ORIGINAL_LOGIT_THRESHOLD = 0.1  # the original's: a logit, so a probability of 0.525
OVERLAY_COLOR = "#8000ff"
OVERLAY_ALPHA = 0.7
RESULTS = {  # the results of a picture, NAME_mask.png and so on
    "mask": ".png",
    "overlay": ".jpg",
    "cutout": ".png",
    "side-by-side": ".jpg",
    "contour": ".jpg",
    "blurred": ".jpg",
    "pixelated": ".jpg",
    "probability": ".png",
    "json": ".json",
}
PICTURES_ONLY = ("cutout", "probability", "json")  # a video has no transparency, and its probabilities no use
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".heic", ".heif",
                  ".avif")  # fmt: skip
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".mts", ".m2ts")
BUNDLED_WEIGHTS = WEIGHTS_DIR / "lite.pth"  # its model card is weights/README.md
BUNDLED_SHA256 = "716a3757f32bd7d8a62bde86f056204c30e0db90780b2e91fa017bd4fbeabd29"
