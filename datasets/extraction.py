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
from PIL import Image

from common.errors import InputError
from common.memory import keep_freed_memory
from datasets import published_criteria as published
from datasets.given import Given
from datasets.keys import slide_key
from datasets.plan import Plan, published_plan
from datasets.quality import judge
from datasets.slides import MPP_RANGE, Slide, UnreadableRegion, resolve_mpp
from datasets.tiles import Tile, TileStore, write_store
from datasets.tissue import glass_colour, mean_density, spread_order, tile_grid, tissue_fractions, tissue_mask

CRITERIA = {"default": (0.5, 0.15, 0.05), "published": (published.MIN_TISSUE, 0.0, 1.0)}  # see TileSettings
BEFORE = {"criteria": "default", "max_pen": 1.0}  # of a store that was cut when these were no settings
FAULTS = ("blank", "flat", "pen", "blurred", "damaged", "unreadable")
MASK_PIXELS_PER_TILE = 16  # resolution of the mask: 8 um for tiles of 128 um
MASK_SIDE = 4096  # largest side of the mask, pixels
UNREADABLE_BUDGET = 0.25  # a slide with a larger share of unreadable tiles is given up
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class TileSettings:
    """How tiles are cut. Recorded in each store; a store cut with other settings is not mixed with these.

    `criteria` "published": those of the published extractor, exactly (datasets/published_criteria.py).
    """

    mpp: float = 0.5  # micrometres per pixel of the tiles; paper: 20x
    tile_size: int = 256  # pixels
    max_tiles: int = 600  # per slide; 0: all
    min_tissue: float | None = None  # least share of tissue in a tile, lumina counted in; None: the criteria's
    min_sharpness: float | None = None  # 0 keeps blurred tiles; None: the criteria's
    fmt: str = "jpeg"
    quality: int = 95
    criteria: str = "default"
    max_pen: float | None = (
        None  # largest share of pixels in a pen's colour; 1 keeps marked tiles; None: the criteria's
    )

    def __post_init__(self) -> None:
        """Fill in what the criteria leave open."""
        least_tissue, least_sharpness, most_pen = CRITERIA[self.criteria]
        self.min_tissue = least_tissue if self.min_tissue is None else self.min_tissue
        self.min_sharpness = least_sharpness if self.min_sharpness is None else self.min_sharpness
        self.max_pen = most_pen if self.max_pen is None else self.max_pen

    def check(self) -> None:
        """InputError names the first setting that cannot be, before any slide is opened."""
        rules = {
            "mpp": (MPP_RANGE[0] <= self.mpp <= MPP_RANGE[1], f"{MPP_RANGE[0]:g} to {MPP_RANGE[1]:g} um per pixel"),
            "tile_size": (8 <= self.tile_size <= 4096, "8 to 4096 pixels"),
            "max_tiles": (self.max_tiles >= 0, "0 (all) or more"),
            "min_tissue": (0 <= self.min_tissue <= 1, "a share from 0 to 1"),
            "min_sharpness": (0 <= self.min_sharpness <= 1, "0 to 1"),
            "max_pen": (0 <= self.max_pen <= 1, "a share from 0 to 1"),
            "quality": (1 <= self.quality <= 100, "1 to 100"),
        }
        for name, (fine, expected) in rules.items():
            if not fine:
                raise InputError(f"--{name} {getattr(self, name)}: expected {expected}")
        if self.criteria == "published" and self.min_sharpness:
            raise InputError(f"--min_sharpness {self.min_sharpness}: the published criteria do not ask for sharpness")
        if self.criteria == "published" and self.max_pen < 1:
            raise InputError(f"--max_pen {self.max_pen}: the published criteria do not look for pen marks")


@dataclass
class Job:
    """One slide to cut: picklable, so that another process can do it."""

    slide: Path
    out: Path
    settings: TileSettings
    mpp_from_table: float | None = None
    mpp_from_flag: float | None = None
    given: Given = field(default_factory=Given)

    @property
    def key(self) -> str:
        """The slide's key, which names its store."""
        return slide_key(self.slide.name)

    @property
    def preview(self) -> Path:
        """Where its picture is drawn."""
        return self.out / "previews" / f"{self.key}.png"


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
    flat: int = 0  # low contrast (published criteria)
    pen: int = 0  # marked with a pen
    blurred: int = 0
    damaged: int = 0
    unreadable: int = 0
    reader: str = ""  # direct | OpenSlide: why
    density: list[float] | None = None  # mean optical density of R, G, B over the stained pixels of the tiles
    seconds: float = 0.0
    reason: str = ""

    def add(self, fault: str) -> None:
        """Count a rejected tile under its fault."""
        setattr(self, fault, getattr(self, fault) + 1)

    def say(self, reason: str) -> None:
        """Add a reason to those that the line has."""
        self.reason = f"{self.reason}; {reason}" if self.reason else reason

    @property
    def rejected(self) -> str:
        """What was rejected, in words."""
        return ", ".join(f"{getattr(self, fault)} {fault}" for fault in FAULTS) + " tiles"


def finished(job: Job) -> Outcome | None:
    """Return the outcome of an earlier run where the slide's store is whole and of this slide; None: cut it.

    InputError where it was cut with other settings.
    """
    path = job.out / f"{job.key}.json"
    if not path.exists():
        return None
    try:
        store = TileStore(path)
    except InputError:  # damaged: cut again
        return None
    if "settings" not in store.extra:
        raise InputError(
            f"{path}: tiles from elsewhere (imported, or spots); use another --out, or --restart to cut it"
        )
    try:
        before, earlier = BEFORE | store.extra["settings"], Outcome(**store.extra["outcome"])
    except (KeyError, TypeError):  # of a form that is no more: cut again
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
    changed += job.given.changes(job.key, store.extra)
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

    Whatever is wrong with the slide ends in the line's `reason`; the caller sets an earlier store of it aside. Only a
    full disk raises (OSError): it concerns all.
    """
    outcome, start = Outcome(job.key), time.perf_counter()
    keep_freed_memory()  # pictures of 200 kB come and go
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
    outcome.reader = slide.reader
    plan = (_published_plan if settings.criteria == "published" else _plan)(job, slide, outcome)
    file = job.slide.stat()
    extra: dict[str, Any] = {
        "settings": asdict(settings),
        "slide_bytes": file.st_size,
        "slide_mtime_ns": file.st_mtime_ns,
    } | job.given.record(job.key)
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
    except InputError:  # of a slide without a tile; else it was drawn before the seal
        plan.draw(job.preview)
        raise


def _plan(job: Job, slide: Slide, outcome: Outcome) -> Plan:
    """Find the tissue and list the tiles to try, in order."""
    settings = job.settings
    scale = slide.scale_for(outcome.mpp or 0, settings.mpp, settings.tile_size)
    if listed := job.given.squares(slide, outcome.mpp or 0, scale, settings.tile_size):
        scale, corners, crossing = listed
        if crossing:
            outcome.say(f"{crossing} of the coordinates cross the slide's edge and were left out")
    else:
        corners = tile_grid(slide.size, scale.step)
    outcome.tile_mpp, outcome.level = round(scale.mpp, 5), scale.level
    if not len(corners):
        raise InputError(
            f"{slide.path}: {slide.size[0]} x {slide.size[1]} pixels are smaller than one tile "
            f"({math.ceil(scale.step)} pixels at level 0); use a smaller --tile_size or --mpp"
        )
    per_tile = min(MASK_PIXELS_PER_TILE, MASK_SIDE * scale.step / max(slide.size))
    overview, unreadable = slide.overview(max(1, round(slide.size[0] * per_tile / scale.step)))
    mask_scale = slide.size[0] / overview.shape[1]  # level-0 pixels per mask pixel
    mask = job.given.tissue(slide, overview.shape[:2])
    if mask is None:
        mask, _ = tissue_mask(overview, mask_scale * (outcome.mpp or 0))
    outcome.tissue = round(float(mask.mean()), 4)
    if unreadable:
        outcome.say(f"{unreadable} parts of the overview are unreadable and were taken for glass")
    fractions = tissue_fractions(mask, corners, scale.step, mask_scale)
    asked = settings.min_tissue if not listed or job.given.masks else 0.0  # who chose the squares looked for tissue
    enough = np.flatnonzero(fractions >= asked)
    outcome.candidates = len(enough)
    plan = Plan(scale, corners[enough], fractions[enough], glass_colour(overview), overview, mask, slide.size[0])
    if not len(enough):
        plan.draw(job.preview)
        hint = f"; {unreadable} parts of the overview were unreadable" if unreadable else ""
        raise InputError(
            f"{slide.path}: no tissue: none of {len(corners)} tiles has a tissue share of {settings.min_tissue:g} "
            f"(largest {fractions.max():.2f}){hint}; look at its preview, or lower --min_tissue"
        )
    order = spread_order(plan.corners, scale.step)
    plan.corners, plan.tissue = plan.corners[order], plan.tissue[order]
    return plan


def _published_plan(job: Job, slide: Slide, outcome: Outcome) -> Plan:
    settings = job.settings
    plan = published_plan(slide, outcome.mpp or 0, settings.mpp, settings.tile_size)
    outcome.tile_mpp, outcome.level = round(plan.scale.mpp, 5), plan.scale.level
    outcome.tissue, outcome.candidates = round(float(plan.mask.mean()), 4), len(plan.corners)
    if not len(plan.corners):
        plan.draw(job.preview)
        raise InputError(f"{slide.path}: no tissue by the published criteria; look at its preview")
    return plan


def _good_tiles(job: Job, slide: Slide, plan: Plan, outcome: Outcome, extra: dict[str, Any]) -> Iterator[Tile]:
    """Yield tiles that pass the checks until there are enough; then complete the outcome and record it in `extra`."""
    settings, unreadable = job.settings, 0
    read = _published_tile if settings.criteria == "published" else _default_tile
    density = np.zeros(3)
    limit = settings.max_tiles or len(plan.corners)
    for number in range(len(plan.corners)):
        if outcome.tiles == limit:
            break
        try:
            tile, fault = read(slide, plan, number, settings)
        except UnreadableRegion as error:
            outcome.add("unreadable")
            unreadable += 1
            if unreadable > max(8, UNREADABLE_BUDGET * len(plan.corners)):
                raise InputError(
                    f"{slide.path}: {unreadable} of {number + 1} tiles are unreadable ({error}); copy the slide again"
                ) from None
            continue
        if fault:
            outcome.add(fault)
            continue
        outcome.tiles += 1
        plan.taken.append(number)
        density += mean_density(tile.image)
        yield tile
    if not outcome.tiles:
        raise InputError(
            f"{slide.path}: none of {outcome.candidates} tiles is fit for use ({outcome.rejected}); "
            "look at its preview"
            + ("" if settings.criteria == "published" else ", or relax --min_sharpness or --max_pen")
        )
    if outcome.unreadable:
        outcome.say(f"{outcome.unreadable} tiles are unreadable and were left out")
    plan.draw(job.preview)  # before the store is sealed
    outcome.density = (density / outcome.tiles).round(4).tolist()
    outcome.status = "cut"
    extra["outcome"] = asdict(outcome)


def _default_tile(slide: Slide, plan: Plan, number: int, settings: TileSettings) -> tuple[Tile, str | None]:
    """Return a tile with its scores, and its fault."""
    x, y = plan.corners[number].tolist()
    image = slide.read_tile(x, y, plan.scale, settings.tile_size)
    fault, scores = judge(image, plan.white, settings.min_sharpness, settings.max_pen)
    return Tile(x, y, float(plan.tissue[number]), image, scores), fault


def _published_tile(slide: Slide, plan: Plan, number: int, settings: TileSettings) -> tuple[Tile, str | None]:
    x, y = plan.corners[number].tolist()
    side, size = plan.scale.side, settings.tile_size
    image = slide.read_region(x, y, 0, (side, side), outside=0)
    tissue, low_contrast = published.judge(image)
    fault = "blank" if not tissue > settings.min_tissue else "flat" if low_contrast else None
    if side != size and not fault:
        image = np.asarray(Image.fromarray(image).resize((size, size)))  # bicubic, as published
    return Tile(x, y, tissue, image), fault
