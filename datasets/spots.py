"""From sections of spatial transcriptomics to one expression table and one tile store per spot.

A spot is a sample, `<section>_<spot>`, and its slide, of one tile: a square around the spot. Its donor, the group that
is never divided by the usual split, is the section unless another is named. Rules, each counted in the report:
- a spot takes part where it has a place on the tissue and counts, at least `min_counts` of them, and where its square
  lies within the image;
- genes are mapped as `prepare_data.py expression` maps them; a gene that the matrix of one section lacks is left out;
  so is one seen in too few training spots; of the others those that vary most between training spots may be chosen;
- with sections set apart for testing, every spot has its split assigned: validation spots are whole blocks of the
  array, so that few have a neighbour in training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from common.errors import InputError, did_you_mean, shorten, warn
from datasets.expression import ExpressionTable, splits_of
from datasets.gene_lists import GeneNames, read_gene_list, read_mapping
from datasets.gene_mapper import GeneMapper
from datasets.keys import slug
from datasets.sections import Picture, Section, find_mpp, open_picture, read_st
from datasets.spot_genes import choose_genes, map_genes, without_repeats
from datasets.tiles import Tile, area_resize, write_store
from datasets.visium import check_spot_diameter, is_visium, read_visium

BLOCK = 4  # side of a validation block in spots; ours: about a tenth of an ST section
WITHOUT_PLACE, WITHOUT_COUNTS, POOR, OUTSIDE = (
    "counts without a place",
    "place without counts",
    "fewer than min_counts",
    "square leaves the image",
)


@dataclass
class SpotSettings:
    """How spots are made into samples and tiles."""

    mpp: float | None = None  # micrometres per pixel of the images; None: from the pitch
    pitch_um: float | None = None  # between neighbouring spots; None: 100 for Visium, unknown for ST
    tile_um: float = 100.0  # side of a spot's square
    img_size: int = 64  # the tile's side in pixels
    min_counts: int = 500
    convert: str = "cpm"  # cpm | none
    min_spots: float = 0.1  # share of training spots in which a gene is seen, at least
    top_genes: int = 0  # keep so many genes that vary most between training spots; 0: all
    test: Sequence[str] = ()  # sections whose spots are test; the others' are train and val
    val_share: float = 0.1
    group: dict[str, str] = field(default_factory=dict)  # section -> donor; "" for all
    tissue: str = ""
    seed: int = 99  # of the validation blocks
    split_seed: int = 99  # of the usual split, which without `test` says what the training spots are

    def check(self) -> None:
        """InputError, naming the flag, where no spot could be prepared with these settings."""
        for flag, value, good, expected in (
            ("tile_um", self.tile_um, self.tile_um > 0, "micrometres above 0"),
            ("pitch", self.pitch_um, self.pitch_um is None or self.pitch_um > 0, "micrometres above 0"),
            ("img_size", self.img_size, self.img_size >= 8, "at least 8 pixels"),
            ("min_counts", self.min_counts, self.min_counts >= 1, "at least 1 (an empty spot has no profile)"),
            ("min_spots", self.min_spots, 0 <= self.min_spots <= 1, "a share from 0 to 1"),
            ("top_genes", self.top_genes, self.top_genes >= 0, "a number of genes, or 0 for all"),
            ("val_share", self.val_share, 0 <= self.val_share < 1, "a share from 0 to below 1"),
        ):
            if not good:
                raise InputError(f"--{flag} {value}: {expected} expected")


@dataclass
class SpotCohort:
    """What is written: the table, and where in which image each of its rows lies."""

    table: ExpressionTable
    corners: np.ndarray  # (spots, 2) left, top of the square in the image, pixels
    sides: dict[str, int]  # section -> side of the square in its image, pixels
    images: dict[str, Path]
    report: dict[str, Any]
    settings: SpotSettings

    def write_tiles(self, folder: str | Path, fmt: str = "jpeg") -> Iterator[str]:
        """Write one store of one tile per spot; yield the spot's name after each. InputError: a damaged image."""
        settings = self.settings
        for section, rows in self.table.obs.groupby("section", sort=False).indices.items():
            with open_picture(self.images[section]) as picture:
                for row in rows:
                    name = str(self.table.obs.index[row])
                    extra = {"section": section, "side_px": self.sides[section], "tile_um": settings.tile_um}
                    tile = self._tile(picture, section, row)
                    mpp = settings.tile_um / settings.img_size
                    write_store(folder, name, [tile], mpp=mpp, tile_size=settings.img_size, fmt=fmt, extra=extra)
                    yield name

    def _tile(self, picture: Picture, section: str, row: int) -> Tile:
        left, top = map(int, self.corners[row])
        square = picture.square(left, top, self.sides[section])
        return left, top, 1.0, area_resize(square, self.settings.img_size)


def read_sections(inputs: Sequence[str | Path], images: Sequence[str | Path] = ()) -> list[Section]:
    """Read one ST folder, or Visium folders with one full-resolution image each, in the same order."""
    for path in inputs:
        if not Path(path).is_dir():
            raise InputError(f"{path}: no such folder; a folder of ST or Visium was expected, check the path")
    if not is_visium(inputs[0]):
        if len(inputs) > 1 or images:
            what = f"{len(inputs)} folders" if len(inputs) > 1 else "--image"
            raise InputError(f"{inputs[0]}: a folder of ST holds its sections and images, {what} given; name it alone")
        return read_st(inputs[0])
    if len(images) != len(inputs):
        raise InputError(
            f"--image: {len(images)} for {len(inputs)} Visium folder(s), the full-resolution image of each was "
            "expected, in the same order (spatial/ holds only small ones)"
        )
    sections = [read_visium(folder, image) for folder, image in zip(inputs, images, strict=True)]
    names = [section.name for section in sections]
    if len(set(names)) < len(names):
        raise InputError(f"--input: two folders are named alike ({shorten(names)}), a section's name is its folder's")
    return sections


def read_groups(words: Sequence[str]) -> dict[str, str]:
    """Return section -> donor of words such as C1=P1, or {"": donor} of one word without "="."""
    if len(words) == 1 and "=" not in words[0]:
        return {"": words[0]}
    pairs = [word.partition("=") for word in words]
    for word, (section, _, donor) in zip(words, pairs, strict=True):
        if not (section and donor):
            raise InputError(f"--group {word}: one donor for all sections, or SECTION=DONOR ..., was expected")
    return {section: donor for section, _, donor in pairs}


def summarise_spots(report: dict[str, Any]) -> str:
    """Return the report in a few lines: pixel sizes, spots kept, left out and split, genes."""
    lines = []
    for name, facts in report["sections"].items():
        lines.append(
            f"{name}: {facts['mpp']:g} um per pixel ({facts['mpp_found_by']}), squares of {facts['square_px']} px"
        )
        left_out = ", ".join(f"{about['n']} {reason}" for reason, about in facts["left_out"].items())
        splits = ", ".join(f"{n} {split}" for split, n in facts["splits"].items())
        lines.append(
            f"{name}: {facts['spots_in_table']} spots ({splits})" + (f"; left out: {left_out}" * bool(left_out))
        )
    genes = report["genes"]
    for said in dict.fromkeys(genes["identifiers"].values()):
        lines.append(f"identifiers: {said}")
    lines.append(
        f"genes: {genes['in_table']} of {genes['mapped']} mapped; left out: {genes['not_in_all_sections']} not in all "
        f"sections, {genes['seen_in_too_few']} seen in too few of {genes['training_spots']} training spots, "
        f"{genes['varying_less']} that vary less"
        + (f"; {len(genes['missing'])} of {genes['wanted']} wanted are missing" if genes["wanted"] is not None else "")
    )
    named = ("unmapped", "ambiguous", "summed")
    lines += [f"genes {what}: {len(genes[what])} ({shorten(genes[what], 3)})" for what in named if genes[what]]
    if repeats := genes["first_of_several"]:
        lines.append(f"genes of which the first row was taken: {len(repeats)} ({shorten(repeats, 3)})")
    return "\n".join(lines)


def prepare_spots(
    sections: Sequence[Section],
    settings: SpotSettings,
    *,
    genes: str | None = None,
    biotype: str | None = None,
    mapping: str | None = None,
    duplicates: str | None = None,
    identifiers: str | None = None,
    source: str = "",
) -> SpotCohort:
    """Choose spots and genes, convert the counts; no image is decoded yet. InputError says what cannot be used.

    `genes`, `biotype`, `mapping`, `duplicates` and `identifiers` are as in prepare_table.
    """
    settings.check()
    if biotype and not genes:
        raise InputError(f"--biotype {biotype} needs a GTF; name it with --genes")
    names = [section.name for section in sections]
    for flag, named in (("test", settings.test), ("group", [n for n in settings.group if n])):
        for name in named:
            if name not in names:
                raise InputError(
                    f"--{flag} {name}: no such section{did_you_mean(name, names)}; there are {shorten(names)}"
                )
    wanted = read_gene_list(genes, biotype) if genes else None
    known = read_mapping(mapping) if mapping else wanted.names if wanted else GeneNames()
    mapper = GeneMapper(wanted, known, identifiers)
    named_by = {section.name: mapper.identify(section.source, section.genes, identifiers) for section in sections}

    repeats: dict[str, list[str]] = {}
    if duplicates == "first":
        sections, found = zip(*(without_repeats(section, mapper) for section in sections), strict=True)
        for names_of in found:
            repeats = names_of | repeats
    kept, corners, sides, reports = [], [], {}, {}
    for section in sections:
        obs, corner, sides[section.name], reports[section.name] = _usable(section, settings)
        kept.append(obs)
        corners.append(corner)
    counts, ids, symbols, gene_report = map_genes(sections, kept, mapper, duplicates)
    obs = pd.concat(kept)
    obs["assigned_split"] = _assign(obs, settings)
    train = np.array(splits_of(obs, settings.split_seed)) == "train"
    cpm = sparse.diags_array(1e6 / obs["total_counts"].to_numpy(float)) @ counts  # (spots, genes)
    chosen, choice = choose_genes(counts, cpm, train, settings.min_spots, settings.top_genes)
    values = np.ascontiguousarray(
        (cpm if settings.convert == "cpm" else counts).tocsc()[:, chosen].toarray(), np.float32
    )

    ids = [ids[i] for i in chosen]
    unit = "CPM" if settings.convert == "cpm" else "counts"
    table = ExpressionTable(values, ids, obs.drop(columns=["u", "v"]), unit, source, symbols)
    for name, of_section in obs.groupby("section", sort=False):
        splits = pd.Series(splits_of(of_section, settings.split_seed)).value_counts()
        reports[name]["splits"] = {split: int(n) for split, n in splits.items()}
    counted = "all genes of the section's file" + (", the first row alone of those that repeat" if repeats else "")
    report = {
        "input": source,
        "sections": reports,
        "spots": len(table),
        "tile_um": settings.tile_um,
        "img_size": settings.img_size,
        "tile_mpp": settings.tile_um / settings.img_size,
        "genes": {"identifiers": named_by} | gene_report | choice | {"first_of_several": repeats, "in_table": len(ids)},
        "unit_of_table": unit,
        "conversion": f"counts / sum over {counted} x 10^6" if unit == "CPM" else None,
    }
    images = {section.name: section.image for section in sections}
    return SpotCohort(table, np.concatenate(corners), sides, images, report, settings)


def _usable(section: Section, settings: SpotSettings) -> tuple[pd.DataFrame, np.ndarray, int, dict[str, Any]]:
    """Return obs of the spots that take part (with u, v and `row` of the counts), corners, side, and the report."""
    mpp, how = find_mpp(section, settings.mpp, settings.pitch_um)
    check_spot_diameter(section, mpp)
    side = max(1, round(settings.tile_um / mpp))
    if side < settings.img_size:
        warn(f"{section.image}: {settings.tile_um:g} um are {side} px, enlarged to --img_size {settings.img_size}")
    with open_picture(section.image) as picture:
        size = picture.size
    places, row_of = section.spots, {spot: row for row, spot in enumerate(section.counted)}
    totals = np.asarray(section.counts.sum(1, dtype=np.float64)).ravel()
    detected = np.asarray((section.counts > 0).sum(1)).ravel()

    left_out: dict[str, list[str]] = {}
    rows = np.array([row_of.get(spot, -1) for spot in places.index], np.int64)
    corner = np.rint(places[["x", "y"]].to_numpy(float) - side / 2).astype(np.int64)  # (spots, 2)
    inside = (corner >= 0).all(1) & (corner + side <= np.array(size)).all(1)
    reasons = (
        (section.off_tissue, ~places["on_tissue"].to_numpy(bool)),
        (WITHOUT_COUNTS, rows < 0),
        (POOR, totals[rows] < settings.min_counts),
        (OUTSIDE, ~inside),
    )
    good = np.ones(len(places), bool)
    for reason, bad in reasons:
        left_out[reason] = places.index[good & bad].tolist()
        good &= ~bad
    left_out[WITHOUT_PLACE] = [spot for spot in section.counted if spot not in places.index]
    facts = {
        "image": str(section.image),
        "size": list(size),
        "mpp": round(mpp, 5),
        "mpp_found_by": how,
        "square_px": side,
        "spots_with_place": len(places),
        "spots_with_counts": len(section.counted),
        "spots_in_table": int(good.sum()),
        "left_out": {reason: {"n": len(s), "spots": shorten(s, 10)} for reason, s in left_out.items() if s},
    }
    if not good.any():
        counted = ", ".join(f"{len(spots)} {reason}" for reason, spots in left_out.items() if spots)
        raise InputError(
            f"{section.source}: no spot of section {section.name} is left ({counted}; spots are named such as "
            f"{shorten(section.counted, 2)} there, {shorten(places.index, 2)} in the file of places); check "
            "--min_counts, --mpp and that the files are of one section"
        )
    places, rows = places[good], rows[good]
    obs = pd.DataFrame(index=pd.Index([f"{section.name}_{spot}" for spot in places.index], dtype=object))
    obs["wsi_file_name"] = obs.index
    obs["donor"] = settings.group.get(section.name) or settings.group.get("") or section.name
    obs["tissue"] = slug(settings.tissue)
    obs["section"] = section.name
    for column in ("array_x", "array_y", "u", "v"):
        obs[column] = places[column].to_numpy()
    obs["total_counts"], obs["genes_detected"] = totals[rows].astype(np.int64), detected[rows]
    return obs, corner[good], side, facts


def _assign(obs: pd.DataFrame, settings: SpotSettings) -> list[str]:
    """Return assigned_split per spot: test by section, val in whole blocks of every other section, train; "" if none.

    Blocks of BLOCK x BLOCK spots are gone through in an order of (seed, section); a block becomes validation where
    that brings the section's share nearer to `val_share`, the smallest block where none does.
    """
    if not settings.test:
        return [""] * len(obs)
    import torch  # takes seconds, which the other commands of prepare_data.py need not wait

    from common.run import generator_for

    assigned = pd.Series("train", index=obs.index, dtype=object)
    for name, spots in obs.groupby("section", sort=False):
        if name in settings.test:
            assigned[spots.index] = "test"
            continue
        if not settings.val_share:
            continue
        blocks = np.floor(spots[["u", "v"]].to_numpy(float) / BLOCK + 1e-6).astype(np.int64)
        _, block_of, sizes = np.unique(blocks, axis=0, return_inverse=True, return_counts=True)
        order = generator_for(settings.seed, "validation blocks", str(name))
        wanted, chosen = settings.val_share * len(spots), []
        for block in torch.randperm(len(sizes), generator=order).tolist():
            have = int(sizes[chosen].sum())
            if abs(have + sizes[block] - wanted) < abs(have - wanted):
                chosen.append(block)
        chosen = chosen or [int(sizes.argmin())]
        assigned[spots.index[np.isin(block_of.ravel(), chosen)]] = "val"
    return assigned.tolist()
