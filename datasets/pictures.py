"""Tiles as pictures for the classifier: folders of PNGs and their tables."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from common.errors import InputError, did_you_mean, shorten
from common.files import atomic_path, read_json
from datasets.image_folder import MAKER, generated_folders, maker_of, manifest_tiles, read_image, read_image_folder
from datasets.keys import donor_of, slug, split_of
from datasets.leaks import HELD_OUT, TrainedOn
from datasets.tile_limits import TileLimits
from datasets.tiles import area_resize, encode_image, open_stores

REAL_TABLE, GENERATED_TABLE = "real_toy_example.csv", "rna-gan_toy_example.csv"


@dataclass
class TileGroup:
    """Tiles of one group (donor) and class: `names` for the files to write, `read(k)` -> uint8 (H, W, 3)."""

    label: str
    group: str
    names: list[str]
    read: Callable[[int], np.ndarray]
    maker: tuple[str, str, str] = ("", "", "")  # MAKER, where its manifest names it
    slide: str = ""  # of real tiles
    split: str = ""  # of real tiles


def write_toy(
    real: Sequence[str | Path],
    generated: Sequence[str | Path],
    out: str | Path,
    per_class: int = 0,
    img_size: int = 0,
    split: str | None = None,
    split_seed: int = 99,
    known: Mapping[str, tuple[str, str]] | None = None,
    limits: TileLimits = TileLimits(),  # noqa: B008 (frozen)
) -> dict[str, pd.DataFrame]:
    """Write PNGs and the classifier's two tables under `out`; return the tables by file name.

    Columns: wsi_file_names (relative to `out`), Labels (the tile folder's name), group (donor), of generated tiles
    MAKER. At most `per_class` tiles of a class (0: all), taken from all groups in turn. `img_size` 0: the smallest side
    of the generated tiles, so that both tables show the same detail; real tiles keep theirs where there are no
    generated ones. With `split` real tiles are of that split's donors alone and say so in a column split: "test" are
    those that neither the VAE nor the GANs were trained on. `known`: slide -> (donor, split), as tables say;
    of other slides the name says the donor and `split_seed` the split. InputError where such a GAN knows one of them.
    Real tiles are those within `limits`.
    """
    out = Path(out)
    real_groups = [group for folder in real for group in _real_groups(Path(folder), known or {}, split_seed, limits)]
    labels = sorted({g.label for g in real_groups})
    if split:
        real_groups = [g for g in real_groups if g.split == split]
        if lacking := set(labels) - {g.label for g in real_groups}:
            raise InputError(f"--split {split}: no donor of {shorten(sorted(lacking))} is in it; add donors")
    generated_groups = [group for folder in generated for group in _generated_groups(Path(folder), labels)]
    if split in HELD_OUT:
        donors = pd.DataFrame({"donor": [g.group for g in real_groups]}, [g.slide for g in real_groups])
        for path in sorted({g.maker[0] for g in generated_groups} - {""}):
            if model := TrainedOn.read(path):
                model.refuse(donors, split, f"--split_seed {split_seed}")
    if not img_size and generated_groups:
        img_size = min(min(g.read(0).shape[:2]) for g in generated_groups)
    tables = {}
    for name, kind, groups in ((REAL_TABLE, "real", real_groups), (GENERATED_TABLE, "rna-gan", generated_groups)):
        if groups:
            tables[name] = _write_pictures(out, kind, groups, per_class, img_size)
            if kind == "real" and split:
                tables[name]["split"] = split
            with atomic_path(out / name) as partial:
                tables[name].to_csv(partial, index=False)
    return tables


def _real_groups(
    folder: Path, known: Mapping[str, tuple[str, str]], split_seed: int, limits: TileLimits
) -> list[TileGroup]:
    groups = []
    for slide, store in open_stores(folder).items():
        numbers = limits.numbers(store).tolist()
        if numbers:
            names = [f"{slide}_{number:05d}" for number in numbers]
            donor, split = known.get(slide) or (donor_of(slide), split_of(donor_of(slide), split_seed))
            read = lambda k, store=store, numbers=numbers: store.read(numbers[k])  # noqa: E731
            groups.append(TileGroup(slug(folder.resolve().name), donor, names, read, slide=slide, split=split))
    if not groups and str(limits):
        raise InputError(f"{folder}: no tile{limits}; widen the limits, or cut the slides again")
    return groups


def _generated_groups(folder: Path, labels: Sequence[str]) -> Iterator[TileGroup]:
    """Return one group per folder with a manifest.json under `folder`, or the folder itself where there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of generated tiles; make it with generate_tissue_images.py")
    for place in generated_folders(folder) or [folder]:
        about, donors = _read_manifest(place / "manifest.json")
        files, label = read_image_folder(place), label_of(place, about, labels)
        groups: dict[str, list[Path]] = {}
        for path in files:
            groups.setdefault(donors.get(path.name) or _donor(about) or place.resolve().name, []).append(path)
        for donor, paths in groups.items():
            names = [f"{donor}_{path.stem}" for path in paths]
            yield TileGroup(label, donor, names, lambda k, paths=paths: read_image(paths[k]), maker_of(about))


def _read_manifest(path: Path) -> tuple[dict, dict[str, str]]:
    """Return what a manifest says of all its tiles, and the donor of each file that it gives one for."""
    content = read_json(path) if path.exists() else {}
    content = content if isinstance(content, dict) else {}
    made_from = content.get("made_from")
    tiles = manifest_tiles(path) if path.exists() else None
    donors = {Path(t["file"]).name: donor for t in tiles or [] if (donor := _donor(t))}
    return content | (made_from if isinstance(made_from, dict) else {}), donors


def _donor(about: dict) -> str | None:
    profile = about.get("profile")
    return about.get("donor") or (donor_of(profile) if isinstance(profile, str) and profile else None)


def label_of(place: Path, about: dict, labels: Sequence[str]) -> str:
    """Return the class of generated tiles: the manifest's tissue, else the nearest folder name with a class in it."""
    for key in ("label", "tissue"):
        if isinstance(about.get(key), str) and slug(about[key]) in labels:
            return slug(about[key])
    for part in reversed(place.resolve().parts):
        found = [label for label in labels if re.search(rf"(^|_){label}($|_)", slug(part))]
        if found:
            return max(found, key=len)
    raise InputError(
        f"{place}: which of the classes {shorten(labels)} these tiles are is in no folder name of its path"
        f"{did_you_mean(place.name, labels)}; name a folder after the class, as the --real folders are"
    )


def _write_pictures(out: Path, kind: str, groups: list[TileGroup], per_class: int, img_size: int) -> pd.DataFrame:
    rows: list[tuple[str, ...]] = []
    for label in sorted({g.label for g in groups}):
        chosen = _in_turn([g for g in groups if g.label == label], per_class)
        used: dict[str, int] = {}
        for group, k in tqdm(chosen, desc=f"{kind} {label}", unit="tile", disable=None):
            image = group.read(k)
            name = group.names[k]
            used[name] = used.get(name, 0) + 1
            if used[name] > 1:  # the same file name in two folders of one donor
                name = f"{name}_{used[name]}"
            file = f"{kind}/{label}/{name}.png"
            _write_png(out / file, area_resize(image, img_size) if img_size else image)
            rows.append((file, label, group.group, *group.maker))
    table = pd.DataFrame(rows, columns=["wsi_file_names", "Labels", "group", *MAKER])
    return table if table["made_by"].any() else table.drop(columns=list(MAKER))


def _in_turn(groups: list[TileGroup], limit: int) -> list[tuple[TileGroup, int]]:
    """Return (group, k) pairs: the first tile of each group, then the second of each, and so on, up to `limit`."""
    longest = max(len(g.names) for g in groups)
    pairs = ((g, k) for k in range(longest) for g in groups if k < len(g.names))
    return list(itertools.islice(pairs, limit or None))


def _write_png(path: Path, image: np.ndarray) -> None:
    with atomic_path(path) as partial:
        partial.write_bytes(encode_image(image, "png"))
