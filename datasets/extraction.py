"""From one slide to its store: mask, grid, quality checks, spread over the tissue, preview."""

import errno
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from common.errors import InputError
from common.memory import keep_freed_memory
from datasets import published_criteria as published
from datasets.job import MASK_PIXELS, MASK_PIXELS_PER_TILE, Job, Outcome, TileSettings
from datasets.plan import Plan, picture_of, published_plan
from datasets.quality import judge
from datasets.slides import Slide, UnreadableRegion, resolve_mpp
from datasets.tiles import Tile, write_store
from datasets.tissue import (
    glass_colour,
    mean_density,
    spread_order,
    stained,
    tile_grid,
    tissue_fractions,
    tissue_mask,
)

UNREADABLE_BUDGET = 0.25  # a slide with a larger share of unreadable tiles is given up
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    per_tile = min(MASK_PIXELS_PER_TILE, scale.step * math.sqrt(MASK_PIXELS / math.prod(slide.size)))
    overview, unreadable = slide.overview(max(1, round(slide.size[0] * per_tile / scale.step)))
    mask_scale = slide.size[0] / overview.shape[1]  # level-0 pixels per mask pixel
    white, picture, given = glass_colour(overview), picture_of(overview), job.given.tissue(slide, overview.shape[:2])
    rough = stained(overview, white) if given is None else given
    del overview  # the larger part of it all
    mask_mpp = mask_scale * (outcome.mpp or 0)
    mask = tissue_mask(rough, mask_mpp) if given is None else given
    outcome.mask_mpp = round(mask_mpp, 3)
    if unreadable:
        outcome.say(f"{unreadable} parts of the overview are unreadable and were taken for glass")
    fractions = tissue_fractions(mask, corners, scale.step, mask_scale)
    asked = settings.min_tissue if not listed or job.given.masks else 0.0  # who chose the squares looked for tissue
    enough = np.flatnonzero(fractions >= asked)
    outcome.candidates = len(enough)
    share = float(mask.mean())
    plan = Plan(scale, corners[enough], fractions[enough], white, picture, picture_of(mask), share, slide.size[0])
    outcome.tissue = round(share, 4)
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
    outcome.tissue, outcome.candidates = round(plan.share, 4), len(plan.corners)
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
