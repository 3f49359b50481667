"""From one slide to its store: mask, grid, quality checks, spread over the tissue, preview."""

import errno
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from common.errors import InputError
from common.files import atomic_path
from datasets.keys import slide_key
from datasets.previews import write_thumbnail
from datasets.slides import MPP_RANGE, Slide, UnreadableRegion, resolve_mpp
from datasets.tiles import Tile, TileStore, write_store
from datasets.tissue import (
    fault_of,
    glass_colour,
    mean_density,
    spread_order,
    tile_grid,
    tissue_fractions,
    tissue_mask,
)

MASK_PIXELS_PER_TILE = 16  # resolution of the mask: 8 um for tiles of 128 um
MASK_SIDE = 4096  # largest side of the mask, pixels
UNREADABLE_BUDGET = 0.25  # a slide with a larger share of unreadable tiles is given up
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class TileSettings:
    """How tiles are cut. Recorded in each store; a store cut with other settings is not mixed with these."""

    mpp: float = 0.5  # micrometres per pixel of the tiles; paper: 20x
    tile_size: int = 256  # pixels
    max_tiles: int = 600  # per slide; 0: all
    min_tissue: float = 0.5  # least share of tissue in a tile, lumina counted in
    min_sharpness: float = 0.15  # 0 keeps blurred tiles
    fmt: str = "jpeg"
    quality: int = 95

    def check(self) -> None:
        """InputError names the first setting that cannot be, before any slide is opened."""
        rules = {
            "mpp": (MPP_RANGE[0] <= self.mpp <= MPP_RANGE[1], f"{MPP_RANGE[0]:g} to {MPP_RANGE[1]:g} um per pixel"),
            "tile_size": (8 <= self.tile_size <= 4096, "8 to 4096 pixels"),
            "max_tiles": (self.max_tiles >= 0, "0 (all) or more"),
            "min_tissue": (0 <= self.min_tissue <= 1, "a share from 0 to 1"),
            "min_sharpness": (0 <= self.min_sharpness <= 1, "0 to 1"),
            "quality": (1 <= self.quality <= 100, "1 to 100"),
        }
        for name, (fine, expected) in rules.items():
            if not fine:
                raise InputError(f"--{name} {getattr(self, name)}: expected {expected}")


@dataclass
class Job:
    """One slide to cut: picklable, so that another process can do it."""

    slide: Path
    out: Path
    settings: TileSettings
    mpp_from_table: float | None = None
    mpp_from_flag: float | None = None

    @property
    def key(self) -> str:
        """The slide's key, which names its store."""
        return slide_key(self.slide.name)


@dataclass
class Outcome:
    """One line of report.csv."""

    slide: str
    status: str = "failed"  # cut | kept (finished earlier) | failed
    tiles: int = 0
    mpp: float | None = None  # of the slide, um per pixel at level 0
    mpp_source: str = ""  # file | table | flag
    tile_mpp: float | None = None  # of the tiles
    level: int | None = None
    tissue: float | None = None  # share of the slide
    candidates: int = 0  # tiles of the grid with enough tissue
    blank: int = 0
    blurred: int = 0
    damaged: int = 0
    unreadable: int = 0
    density: list[float] | None = None  # mean optical density of R, G, B over the stained pixels of the tiles
    seconds: float = 0.0
    reason: str = ""

    def add(self, fault: str) -> None:
        """Count a rejected tile under its fault."""
        setattr(self, fault, getattr(self, fault) + 1)

    @property
    def rejected(self) -> str:
        """What was rejected, in words."""
        return ", ".join(f"{getattr(self, k)} {k}" for k in ("blank", "blurred", "damaged", "unreadable")) + " tiles"


@dataclass
class _Plan:
    scale: Any
    corners: np.ndarray  # (n, 2) candidates in the order in which they are tried
    tissue: np.ndarray  # (n,)
    white: np.ndarray  # (3,)
    overview: np.ndarray
    mask: np.ndarray
    width: int  # of the slide at level 0
    taken: list[int] = field(default_factory=list)


def finished(job: Job) -> Outcome | None:
    """Return the outcome of an earlier run where the slide's store is whole and of this slide; None: cut it.

    InputError where it was cut with other settings.
    """
    path = job.out / f"{job.key}.json"
    if not path.exists():
        return None
    try:
        store = TileStore(path)
        before, earlier = store.extra["settings"], Outcome(**store.extra["outcome"])
    except (InputError, KeyError, TypeError):  # damaged, or not ours: cut again
        return None
    wanted, slide = asdict(job.settings), job.slide.stat()
    changed = [f"{k} ({before.get(k)} there, {v} now)" for k, v in wanted.items() if before.get(k) != v]
    mpp = job.mpp_from_table or (job.mpp_from_flag if earlier.mpp_source != "file" else None)
    if earlier.mpp_source == "table" and job.mpp_from_table is None:
        changed.append(f"mpp of the slide ({earlier.mpp} there from --mpp_table, not in it now)")
    elif earlier.mpp_source == "flag" and mpp is None:
        changed.append(f"mpp of the slide ({earlier.mpp} there from --slide_mpp, not given now)")
    elif mpp is not None and mpp != earlier.mpp:
        changed.append(f"mpp of the slide ({earlier.mpp} there, {mpp} now)")
    if changed:
        raise InputError(
            f"{path}: cut with other settings: {', '.join(changed)}; use another --out, or --restart to cut it again"
        )
    if (slide.st_size, slide.st_mtime_ns) != (store.extra.get("slide_bytes"), store.extra.get("slide_mtime_ns")):
        return None
    earlier.status = "kept"
    return earlier


def cut_slide(job: Job) -> Outcome:
    """Cut one slide into `<out>/<key>.tar` and `.json` and draw `<out>/previews/<key>.png`; return its report line.

    Whatever is wrong with the slide ends in the line's `reason`, and an earlier store of it is set aside. Only a full
    disk raises (OSError): it concerns all.
    """
    outcome, start = Outcome(job.key), time.perf_counter()
    try:
        with Slide(job.slide) as slide:
            _cut(job, slide, outcome)
    except InputError as error:
        outcome.status, outcome.tiles, outcome.reason = "failed", 0, str(error)
    except Exception as error:  # a fault on one slide must not cost the others; its kind and text are in the report
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        outcome.status, outcome.tiles = "failed", 0
        outcome.reason = f"{job.slide}: {type(error).__name__}: {error}"
    outcome.reason = " ".join(outcome.reason.split())
    if outcome.status == "failed":
        set_aside(job, outcome)
    outcome.seconds = round(time.perf_counter() - start, 2)
    return outcome


def set_aside(job: Job, outcome: Outcome) -> None:
    """Rename the store that a slide had before it failed, so that no run trains on it; say so in the outcome."""
    names = [f"{job.key}.json", f"{job.key}.tar"]  # in this order: a tar without its seal is no store
    for name in names:
        if (job.out / name).exists():
            os.replace(job.out / name, job.out / f"{name}.old")
    if aside := [f"{name}.old" for name in names if (job.out / f"{name}.old").exists()]:
        outcome.reason += f"; its earlier tiles were set aside as {', '.join(aside)}"


def _cut(job: Job, slide: Slide, outcome: Outcome) -> None:
    settings = job.settings
    outcome.mpp, outcome.mpp_source = resolve_mpp(slide, job.mpp_from_table, job.mpp_from_flag)
    plan = _plan(job, slide, outcome)
    file = job.slide.stat()
    extra: dict[str, Any] = {
        "settings": asdict(settings),
        "slide_bytes": file.st_size,
        "slide_mtime_ns": file.st_mtime_ns,
    }
    try:
        write_store(
            job.out,
            slide.key,
            _good_tiles(job, slide, plan, outcome, extra),
            mpp=plan.scale.mpp,
            tile_size=settings.tile_size,
            fmt=settings.fmt,
            quality=settings.quality,
            extra=extra,
        )
    finally:
        _draw_preview(job, plan)


def _plan(job: Job, slide: Slide, outcome: Outcome) -> _Plan:
    """Find the tissue and list the tiles to try, in order."""
    settings = job.settings
    scale = slide.scale_for(outcome.mpp or 0, settings.mpp, settings.tile_size)
    outcome.tile_mpp, outcome.level = round(scale.mpp, 5), scale.level
    corners = tile_grid(slide.size, scale.step)
    if not len(corners):
        raise InputError(
            f"{slide.path}: {slide.size[0]} x {slide.size[1]} pixels are smaller than one tile "
            f"({math.ceil(scale.step)} pixels at level 0); use a smaller --tile_size or --mpp"
        )
    per_tile = min(MASK_PIXELS_PER_TILE, MASK_SIDE * scale.step / max(slide.size))
    overview, unreadable = slide.overview(max(1, round(slide.size[0] * per_tile / scale.step)))
    mask_scale = slide.size[0] / overview.shape[1]  # level-0 pixels per mask pixel
    mask, numbers = tissue_mask(overview, mask_scale * (outcome.mpp or 0))
    outcome.tissue, outcome.unreadable = numbers["share"], unreadable
    fractions = tissue_fractions(mask, corners, scale.step, mask_scale)
    enough = np.flatnonzero(fractions >= settings.min_tissue)
    outcome.candidates = len(enough)
    plan = _Plan(scale, corners[enough], fractions[enough], glass_colour(overview), overview, mask, slide.size[0])
    if not len(enough):
        _draw_preview(job, plan)
        hint = f"; {unreadable} parts of the overview were unreadable" if unreadable else ""
        raise InputError(
            f"{slide.path}: no tissue: none of {len(corners)} tiles has a tissue share of {settings.min_tissue:g} "
            f"(largest {fractions.max():.2f}){hint}; look at its preview, or lower --min_tissue"
        )
    order = spread_order(plan.corners, scale.step)
    plan.corners, plan.tissue = plan.corners[order], plan.tissue[order]
    return plan


def _good_tiles(job: Job, slide: Slide, plan: _Plan, outcome: Outcome, extra: dict[str, Any]) -> Iterator[Tile]:
    """Yield tiles that pass the checks until there are enough; then complete the outcome and record it in `extra`."""
    settings, unreadable = job.settings, 0
    density = np.zeros(3)
    limit = settings.max_tiles or len(plan.corners)
    for number, (x, y) in enumerate(plan.corners.tolist()):
        if outcome.tiles == limit:
            break
        try:
            image = slide.read_tile(x, y, plan.scale, settings.tile_size)
        except UnreadableRegion as error:
            outcome.add("unreadable")
            unreadable += 1
            if unreadable > max(8, UNREADABLE_BUDGET * len(plan.corners)):
                raise InputError(
                    f"{slide.path}: {unreadable} of {number + 1} tiles are unreadable ({error}); copy the slide again"
                ) from None
            continue
        if fault := fault_of(image, plan.white, settings.min_sharpness):
            outcome.add(fault)
            continue
        outcome.tiles += 1
        plan.taken.append(number)
        density += mean_density(image)
        yield x, y, float(plan.tissue[number]), image
    if not outcome.tiles:
        raise InputError(
            f"{slide.path}: none of {outcome.candidates} tiles is fit for use ({outcome.rejected}); "
            "look at its preview, or lower --min_sharpness"
        )
    if outcome.unreadable:
        outcome.reason = "parts of the slide are unreadable and were left out"
    outcome.density = (density / outcome.tiles).round(4).tolist()
    outcome.status = "cut"
    extra["outcome"] = asdict(outcome)


def _draw_preview(job: Job, plan: _Plan) -> None:
    """Write the overview with the tissue's outline (green) and the tiles taken (blue), at most about 1,000 pixels."""
    height, width = plan.mask.shape
    zoom = min(1.0, 1000 / max(height, width)) if max(height, width) > 500 else max(1, 800 // max(height, width))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    picture = np.array(Image.fromarray(plan.overview).resize(size, Image.Resampling.BOX))
    mask = np.asarray(Image.fromarray(plan.mask).resize(size, Image.Resampling.NEAREST))
    scale = size[0] / plan.width
    boxes = [(*(plan.corners[number] * scale).tolist(), plan.scale.step * scale) for number in plan.taken]
    write_thumbnail(job.out / "previews" / f"{job.key}.jpg", picture, mask, boxes)
    inner = np.pad(mask, 1, mode="edge")
    edge = mask & ~(inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:])
    picture[edge] = (0, 150, 60)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for x, y, side in boxes:
        draw.rectangle((x, y, x + side - 1, y + side - 1), outline=(30, 60, 220))
    with atomic_path(job.out / "previews" / f"{job.key}.png") as partial:
        image.save(partial, "PNG")
