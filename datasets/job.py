"""One slide to cut: how, what came of it, and what an earlier run has left. Light: the workers load what cuts."""

import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.errors import InputError
from datasets.given import Given
from datasets.keys import slide_key
from datasets.slides import MPP_RANGE, Slide
from datasets.tiles import TileStore

# Least tissue share, least sharpness and largest pen share of a tile. Published: patch_gen_grid.py keeps over 20 %.
CRITERIA = {"default": (0.5, 0.15, 0.05), "published": (0.2, 0.0, 1.0)}
BEFORE = {"criteria": "default", "max_pen": 1.0}  # of a store that was cut when these were no settings
MASK_PIXELS_PER_TILE = 16  # side of a tile in the mask, at most: 8 um per pixel for tiles of 128 um
MASK_PIXELS = 1 << 22  # of a mask at most: its memory does not grow with the slide
FAULTS = ("blank", "flat", "pen", "blurred", "damaged", "unreadable")


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
    max_pen: float | None = None  # largest share of pen-coloured pixels; 1 keeps marked tiles; None: the criteria's

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
    mask_mpp: float | None = None  # of the tissue mask
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
    if earlier.mask_mpp is None and job.settings.criteria == "default" and _mask_was_finer(job, earlier):
        changed.append(f"a finer tissue mask there; now it has {MASK_PIXELS:,} pixels at most")
    if changed:
        raise InputError(
            f"{path}: cut with other settings: {', '.join(changed)}; use another --out, or --restart to cut it again"
        )
    if (slide.st_size, slide.st_mtime_ns) != (store.extra.get("slide_bytes"), store.extra.get("slide_mtime_ns")):
        return None
    earlier.status = "kept"
    return earlier


def _mask_was_finer(job: Job, earlier: Outcome) -> bool:
    """Say whether the slide has so many tiles that its mask, without the bound that masks have now, would be finer."""
    step = job.settings.tile_size * job.settings.mpp / (earlier.mpp or 1.0)  # level-0 pixels
    try:
        with Slide(job.slide) as slide:
            return math.prod(slide.size) * (MASK_PIXELS_PER_TILE / step) ** 2 > MASK_PIXELS
    except InputError:  # damaged since: what there is stays
        return False


def set_aside(job: Job, outcome: Outcome) -> None:
    """Rename the store that a slide had before it failed, so that no run trains on it; say so in the outcome."""
    names = [f"{job.key}.json", f"{job.key}.tar"]  # in this order: a tar without its seal is no store
    for name in names:
        if (job.out / name).exists():
            os.replace(job.out / name, job.out / f"{name}.old")
    if aside := [f"{name}.old" for name in names if (job.out / f"{name}.old").exists()]:
        outcome.reason += f"; its earlier tiles were set aside as {', '.join(aside)}"
