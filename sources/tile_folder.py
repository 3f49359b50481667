"""A folder of generated tiles and its manifest: what they were made from, and which files they are."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.checkpoint import load_checkpoint
from common.distributed import current
from common.errors import InputError, shorten, warn
from common.files import read_json, remove_partials, write_json
from common.together import together
from common.torch_files import is_foreign
from datasets.image_folder import generated_folders
from datasets.leaks import TrainedOn
from models.generate import cut_at_chunks
from sources.division import from_main
from sources.gan import GANSource
from sources.pictures import write_png
from sources.real import RealSource

# Not compared: paths may be spelled otherwise, and a distance follows from what was loaded; digests say what that was.
NOT_COMPARED = {"checkpoint", "table", "config", "label", "distance"}


class TileFolder:
    """A folder of generated tiles with a manifest: opened for one model, profile and seed, filled, closed; again: kept.

    `manifest.json` holds what the tiles were made from and, once closed, {"tiles": [{"file": ..., "index": k}, ...]}.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = self.path / "manifest.json"

    def open(self, described: dict[str, Any]) -> None:
        """Write the manifest's head. InputError where the folder holds tiles made from something else."""
        if self.manifest.exists():
            before = read_json(self.manifest)
            before = before.get("made_from", {}) if isinstance(before, dict) else {}
            now = json.loads(json.dumps(described))  # as it would be read back
            if changed := [k for k in sorted((set(before) | set(now)) - NOT_COMPARED) if before.get(k) != now.get(k)]:
                pairs = [f"{k} ({_short(before.get(k))} there, {_short(now.get(k))} now)" for k in changed]
                raise InputError(
                    f"{self.path}: holds tiles made from something else: {shorten(pairs, 3)}; choose another --out, or "
                    "remove the folder"
                )
            return
        if any(self.path.glob("seed*_*.png")):
            raise InputError(f"{self.path}: holds tiles but no manifest.json; choose another --out, or remove them")
        write_json(self.manifest, {"made_from": described, "finished": False, "tiles": []})

    def tile(self, seed: int, k: int) -> Path:
        """Return the file of tile k."""
        return self.path / f"seed{seed}_{k:05d}.png"

    def missing(self, n: int, seed: int) -> list[tuple[int, int]]:
        """Return the stretches (first, stop) of 0..n - 1 whose files are not there; a file that is there is whole."""
        stretches: list[tuple[int, int]] = []
        for k in range(n):
            if not self.tile(seed, k).exists():
                if stretches and stretches[-1][1] == k:
                    stretches[-1] = (stretches[-1][0], k + 1)
                else:
                    stretches.append((k, k + 1))
        return stretches

    def close(self, described: dict[str, Any], n: int, seed: int, profiles: Sequence[str] | None = None) -> None:
        """Write the manifest: what the first n tiles are, with the profile of each where they differ. The rest stay."""
        tiles = [{"file": self.tile(seed, k).name, "index": k} for k in range(n)]
        if profiles is not None:
            tiles = [tile | {"profile": name} for tile, name in zip(tiles, profiles, strict=True)]
        write_json(self.manifest, {"made_from": described, "finished": True, "n": n, "tiles": tiles})


def write_tiles(
    source: GANSource | RealSource, about: dict[str, Any], folder: TileFolder, n: int, seed: int, batch_size: int
) -> None:
    """Write what is missing of n tiles, and the manifest; several ranks divide the chunks of tiles that are missing."""
    described = source.describe() | about | {"seed": seed}
    missing = np.empty((0, 2), np.int64)
    with together():
        if current().main:
            folder.open(described)
            remove_partials(folder.path)
            missing = np.array(folder.missing(n, seed), np.int64).reshape(-1, 2)
    pieces = cut_at_chunks(from_main(missing).tolist())
    mine = pieces[current().share(len(pieces))]
    count = sum(stop - first for first, stop in mine)
    with together() as group, tqdm(total=count, unit="tile", desc=source.label, mininterval=1, disable=None) as bar:
        for k, stop in group.steps(mine, rounds=-(-len(pieces) // current().world)):
            for batch in numbered_tiles(source, k, stop, n, seed, batch_size):
                for tile in batch:
                    write_png(folder.tile(seed, k), tile)
                    k += 1
                bar.update(len(batch))
    if current().main:
        profile_of = source.profile_of_tiles(n, seed) if isinstance(source, GANSource) else None
        names = None if profile_of is None else [source.names[i] for i in profile_of]
        folder.close(described, n, seed, names)


def numbered_tiles(
    source: GANSource | RealSource, first: int, stop: int, n: int, seed: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Yield tiles `first` to `stop` - 1 of the n that (source, seed) name, uint8 (b, H, W, 3), b <= `batch_size`."""
    if isinstance(source, GANSource):
        yield from source.batches(stop - first, seed, batch_size, first)
    else:
        chosen = source.choose(n, seed)[first:stop]
        yield from (source.read(chosen[i : i + batch_size]) for i in range(0, len(chosen), batch_size))


def makers_of(folder: str | Path) -> list[TrainedOn]:
    """Return who trained the models that made a folder's pictures, as its manifests name them.

    A warning, once, where that cannot be known: no manifest, no such checkpoint any more, or another one in its place.
    """
    folder = Path(folder)
    places = generated_folders(folder)
    doubts, found = [] if places else ["no manifest.json of generate_tissue_images.py"], {}
    for place in places:
        made_from = read_json(place / "manifest.json").get("made_from")
        made_from = made_from if isinstance(made_from, dict) else {}
        path, digest = made_from.get("checkpoint"), made_from.get("digest")
        if made_from.get("kind") == "real" or digest in found:
            continue
        if not isinstance(path, str) or not Path(path).is_file():
            doubts.append(f"its manifest.json names {path or 'no checkpoint'}, which is not there")
            continue
        if is_foreign(path):  # a published file, whose digest follows from how it was opened, says of nobody
            found[digest] = TrainedOn(path, {})
            continue
        state, now = load_checkpoint(path, "gan")
        if now == digest:
            found[digest] = TrainedOn(path, state)
        else:
            doubts.append(f"{path} is not the model any more that made it")
    if doubts:
        warn(f"{folder}: {shorten(dict.fromkeys(doubts), 1)}: whether held-out donors trained it cannot be checked")
    return list(found.values())


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
