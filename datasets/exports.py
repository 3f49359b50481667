"""Tiles for other tools: PNGs in folders, or the shards of WebDataset."""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from common.errors import InputError
from common.files import atomic_path, write_json
from datasets.keys import donor_of
from datasets.tile_limits import TileLimits
from datasets.tiles import TileStore, encode_image, open_stores

COLUMNS = ["file", "slide", "x", "y", "tissue", "mpp", "tile_size"]
SHARD = "shard-{:06d}.tar"


def stores_of(tiles: str | Path) -> list[TileStore]:
    """Return the stores of a folder, or the one that a path names."""
    return list(open_stores(tiles).values()) if Path(tiles).is_dir() else [TileStore(tiles)]


def numbers_of(stores: Iterable[TileStore], limits: TileLimits) -> list[list[int]]:
    """Return the numbers of each store's tiles within the limits. InputError where there is none at all."""
    numbers = [limits.numbers(store).tolist() for store in stores]
    if str(limits) and not any(numbers):
        raise InputError(f"--tiles: no tile of {len(numbers)} slides{limits}; widen the limits")
    return numbers


def export_folder(
    stores: Sequence[TileStore],
    out: str | Path,
    limits: TileLimits = TileLimits(),  # noqa: B008 (frozen)
) -> pd.DataFrame:
    """Write tiles as `<out>/<slide>/*.png`, list them in `<out>/tiles.csv` with COLUMNS; return that table.

    x and y are pixels at level 0; they and tissue are empty where a store does not know them.
    """
    out, rows = Path(out), []
    chosen = numbers_of(stores, limits)
    for store, numbers in tqdm(zip(stores, chosen, strict=True), "export", len(chosen), unit="slide", disable=None):
        for index in numbers:
            about = _about(store, index)
            place = "" if about["x"] is None else f"_x{about['x']}_y{about['y']}"
            file = f"{store.slide}/{index:05d}{place}.png"
            with atomic_path(out / file) as partial:
                partial.write_bytes(encode_image(store.read(index), "png"))
            rows.append({"file": file, **about})
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"x": "Int64", "y": "Int64"})
    with atomic_path(out / "tiles.csv") as partial:
        table.to_csv(partial, index=False)
    return table


def export_shards(
    stores: Sequence[TileStore],
    out: str | Path,
    shard_size: int,
    limits: TileLimits = TileLimits(),  # noqa: B008 (frozen)
) -> list[dict[str, Any]]:
    """Write tiles as WebDataset shards of `shard_size` samples; return [{"shard": ..., "samples": ...}, ...].

    A sample is <key>.jpg (or .png: the bytes of the store, their CRC32 checked) and <key>.json: slide, donor, index, x,
    y, tissue, mpp, tile_size. A key is the slide's name, with _ for each character that a key cannot have (a dot ends
    it), and the tile's number; no two are equal. <out>/shards.json lists the shards, and is written last. InputError
    where there are shards already, or slides whose keys would be equal.
    """
    out = Path(out)
    if found := sorted(out.glob("shard-*.tar")):
        raise InputError(f"{found[0]}: there already; choose another --out, or remove the earlier shards")
    keys = _keys(stores)
    chosen = numbers_of(stores, limits)
    samples = ((keys[store.slide], store, index) for store, own in zip(stores, chosen, strict=True) for index in own)
    total = sum(map(len, chosen))
    shards: list[dict[str, Any]] = []
    with tqdm(total=total, desc="export", unit="tile", disable=None) as bar:
        for number in range(-(-total // shard_size)):
            name = SHARD.format(number)
            n = 0
            with atomic_path(out / name) as partial, tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
                for member, data in _members(samples, shard_size):
                    entry = tarfile.TarInfo(member)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
                    n += member.endswith(".json")
                    bar.update(member.endswith(".json"))
            shards.append({"shard": name, "samples": n})
    write_json(out / "shards.json", {"samples": total, "slides": sum(map(bool, chosen)), "shards": shards})
    return shards


def _members(samples: Iterator[tuple[str, TileStore, int]], most: int) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the next `most` samples, each a picture and a JSON of one key."""
    for _ in range(most):
        if (sample := next(samples, None)) is None:
            return
        slide, store, index = sample
        data = store.read_bytes(index)
        key, suffix = f"{slide}_{index:05d}", ".png" if data.startswith(b"\x89PNG") else ".jpg"
        about = {"slide": store.slide, "donor": donor_of(store.slide), "index": index, **_about(store, index)}
        yield key + suffix, data
        yield f"{key}.json", json.dumps(about).encode()


def _about(store: TileStore, index: int) -> dict[str, Any]:
    (x, y), tissue = store.coords[index].tolist(), float(store.tissue[index])
    known = x >= 0
    return {
        "slide": store.slide,
        "x": x if known else None,
        "y": y if known else None,
        "tissue": round(tissue, 4) if tissue == tissue else None,
        "mpp": store.mpp,
        "tile_size": store.tile_size,
    }


def _keys(stores: Sequence[TileStore]) -> dict[str, str]:
    """Return slide -> key. InputError where two slides would share one."""
    slide_of: dict[str, str] = {}
    for store in stores:
        key = re.sub(r"[^0-9A-Za-z_-]", "_", store.slide)
        if key in slide_of:
            raise InputError(f"slides {slide_of[key]} and {store.slide} would share the key {key}; rename one of them")
        slide_of[key] = store.slide
    return {slide: key for key, slide in slide_of.items()}
