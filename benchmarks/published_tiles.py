"""The published extractor, re-stated with the libraries that it uses: what our criteria are held against.

Source: gevaertlab/RNA-GAN at 75dc998, src/preprocess/patch_gen_grid.py; nothing is copied. Where it writes with
lz4framed, which is offered as source alone, lz4.frame is taken: the same format. It writes its slide's mask as .npy
and its patches as lz4-compressed pickles of raw pixels into LMDB; here the raw pixels are compressed as they are,
which spares it the pickling.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion
from skimage.color import rgb2hsv
from skimage.exposure import is_low_contrast
from skimage.filters import threshold_otsu


def pixel_rule(image: np.ndarray) -> np.ndarray:
    """Return the tissue (H, W) bool of uint8 RGB: saturated, not bright in all channels, above 50 in all."""
    saturated = rgb2hsv(image)[..., 1]
    bright = np.ones(image.shape[:2], bool)
    light = np.ones(image.shape[:2], bool)
    for channel in np.moveaxis(image, -1, 0):
        bright &= channel > threshold_otsu(channel)
        light &= channel > 50
    return (saturated > threshold_otsu(saturated)) & ~bright & light


def mask_of(slide: openslide.OpenSlide) -> np.ndarray:
    """Return the mask (H, W) of the coarsest level, read whole, dilated and eroded three times."""
    level = slide.level_count - 1
    image = np.array(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))
    return binary_erosion(binary_dilation(pixel_rule(image), iterations=3), iterations=3)


def patches(
    slide: openslide.OpenSlide, mask: np.ndarray, side: int, most: int
) -> Iterator[tuple[int, int, Image.Image]]:
    """Yield x, y and picture of the patches kept, at most `most`, in the order in which they are found."""
    factor = float(slide.properties.get("aperio.AppMag", 20)) / 20.0
    step = int(factor * side)
    (width, height), (columns, rows) = slide.dimensions, slide.level_dimensions[-1]
    order = [(x, y) for x in range(0, width, step) for y in range(0, height, step)]
    np.random.seed(5)
    np.random.shuffle(order)
    kept = 0
    for x, y in order:
        if kept >= most:
            return
        if not mask[int(y / (height / rows)), int(x / (width / columns))]:
            continue
        patch = slide.read_region((x, y), 0, (step, step)).convert("RGB")
        tissue = binary_dilation(pixel_rule(np.array(patch)), iterations=3)
        if tissue.sum() > 0.2 * tissue.size and not is_low_contrast(patch):
            kept += 1
            yield x, y, patch if factor == 1.0 else patch.resize((side, side))


def extract(path: Path, out: Path, side: int = 256, most: int = 2000) -> int:
    """Cut a slide into `<out>/<slide>.db` and `<out>/mask.npy`; return how many patches were kept."""
    import lmdb
    import lz4.frame

    out.mkdir(parents=True)
    slide = openslide.OpenSlide(path)
    mask = mask_of(slide)
    np.save(out / "mask.npy", mask.T)
    store = lmdb.open(
        str(out / f"{path.stem}.db"),
        subdir=False,
        map_size=(most + 100) * 3 * side * side,
        meminit=False,
        map_async=True,
    )
    count, transaction = 0, store.begin(write=True)
    for _, _, patch in patches(slide, mask, side, most):
        transaction.put(str(count).encode(), lz4.frame.compress(np.array(patch).tobytes()))
        count += 1
        if count % 100 == 0:
            transaction.commit()
            transaction = store.begin(write=True)
    transaction.put(b"__keys__", lz4.frame.compress(b",".join(str(k).encode() for k in range(count))))
    transaction.commit()
    store.sync()
    store.close()
    return count
