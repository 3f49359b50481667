"""The classifier's table: one picture per row with its label and, where known, the group (donor) it comes from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from common.errors import InputError, did_you_mean, shorten
from common.files import read_json, sha256_of
from datasets.image_folder import MAKER, generated_folders, maker_of, read_image, read_image_folder

# our column -> the names accepted for it; the second of each is in the published tables
COLUMNS = {"wsi_file_names": ("wsi_file_names", "wsi_file_name"), "Labels": ("Labels", "label")}
IN_MEMORY_BYTES = 4 * 2**30  # decoded tiles above this are read from their files each time they are needed


@dataclass
class ImageTable:
    """Rows of one table: `names` as written, `paths` of the files, `labels` as text, `groups` as text or None.

    `said` (n rows) has the columns split ("test" where the table calls a row held out) and MAKER (which GAN made it),
    each "" where the table has none.
    """

    path: Path
    names: list[str]
    paths: list[Path]
    labels: np.ndarray  # (n,) str
    groups: np.ndarray | None  # (n,) str
    side: int = field(default=0)  # smallest side of its pictures, pixels
    said: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def makers(self) -> list[tuple[str, str, str]]:
        """MAKER of the generated rows, each once, sorted; [] where the table names none."""
        rows = self.said[self.said["made_by"] != ""]
        return sorted(set(rows[list(MAKER)].itertuples(index=False, name=None)))


def read_image_table(path: str | Path, patch_data_path: str | Path = ".") -> ImageTable:
    """Read a CSV with columns wsi_file_names, Labels and, optionally, group; look at every picture's header.

    `path` is looked for as given, else under `patch_data_path`; so is each picture, the other way round. InputError
    names the row (the header is row 1) of an empty cell, a picture that is missing or unreadable, or one named twice.
    """
    path = _find_table(Path(path), Path(patch_data_path))
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable CSV ({str(error)[:100]}); write it again") from None
    columns = {}
    for wanted, names in COLUMNS.items():
        found = [name for name in names if name in table.columns]
        if not found:
            hint = did_you_mean(wanted, table.columns, n=1)
            raise InputError(
                f"{path}: column {wanted} is missing{hint}; expected {' and '.join(COLUMNS)} "
                f"(and group), found {shorten(table.columns)}"
            )
        columns[wanted] = found[0]
    if table.empty:
        raise InputError(f"{path}: no rows under the header; list at least two classes of pictures")
    used = [*columns.values(), *(["group"] if "group" in table.columns else [])]
    for column in used:
        if (empty := table[column].str.strip() == "").any():
            raise InputError(f"{path}: row {int(empty.argmax()) + 2}, column {column}: empty; fill it or drop the row")
    names = table[columns["wsi_file_names"]].str.strip().tolist()
    paths, sides = _find_pictures(path, names, Path(patch_data_path))
    return ImageTable(
        path,
        names,
        paths,
        table[columns["Labels"]].str.strip().to_numpy(str),
        table["group"].str.strip().to_numpy(str) if "group" in table.columns else None,
        min(sides),
        table.reindex(columns=["split", *MAKER], fill_value="").apply(lambda column: column.str.strip()),
    )


@dataclass
class Unlabelled:
    """Pictures without labels: files, who made them (MAKER of each GAN), and the donors whose own tiles they are."""

    source: str
    paths: list[Path]
    makers: list[tuple[str, str, str]]
    own_donors: list[str]

    @property
    def made_by(self) -> list[str]:
        """The GANs' checkpoints."""
        return sorted({checkpoint for checkpoint, *_ in self.makers})

    def describe(self) -> dict[str, object]:
        """Return what was read: where from, how many, who made them, and a SHA-256 over the files' content."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(bytes.fromhex(sha256_of(path)))
        about = {
            "source": self.source,
            "n": len(self.paths),
            "sha256": digest.hexdigest(),
            "makers": named(self.makers),
        }
        return about | {"own_donors": len(self.own_donors)}


def read_unlabelled_pictures(source: str | Path, patch_data_path: str | Path = ".") -> Unlabelled:
    """Return the pictures of a folder (as generate_tissue_images.py writes it, or any) or of a table's rows."""
    if Path(source).is_dir():
        places = generated_folders(Path(source)) or []
        makers = {maker_of(read_json(place / "manifest.json").get("made_from")) for place in places}
        return Unlabelled(str(source), read_image_folder(source), sorted(m for m in makers if m[0]), [])
    table = read_image_table(source, patch_data_path)
    own = [] if table.groups is None else sorted(set(table.groups[(table.said["made_by"] == "").to_numpy()]))
    return Unlabelled(str(table.path), table.paths, table.makers, own)


def named(makers: Sequence[tuple[str, str, str]]) -> list[dict[str, str]]:
    """Return makers as metrics.json has them."""
    return [dict(zip(MAKER, maker, strict=True)) for maker in makers]


class Pictures:
    """Pictures of one or more tables at one side, read once and kept as uint8 (up to IN_MEMORY_BYTES)."""

    def __init__(self, paths: Sequence[Path], img_size: int) -> None:
        """`img_size` in pixels; other sizes are area-resized (the central square of one that is not square)."""
        self.paths, self.img_size = list(paths), img_size
        self._kept: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return pictures `rows` (n,) as uint8 RGB (n, img_size, img_size, 3). InputError names an unreadable file."""
        if self._kept is not None:
            return self._kept[rows]
        return np.stack([read_image(self.paths[i], self.img_size) for i in rows])

    def keep(self) -> None:
        """Decode all pictures now, where they fit; a corrupt one is found here, before any training."""
        from tqdm import tqdm

        fits = len(self) * self.img_size**2 * 3 <= IN_MEMORY_BYTES
        kept = np.empty((len(self) if fits else 0, self.img_size, self.img_size, 3), np.uint8)
        for row in tqdm(range(len(self)), desc="reading tiles", unit="tile", disable=None):
            picture = read_image(self.paths[row], self.img_size)
            if fits:
                kept[row] = picture
        self._kept = kept if fits else None


def _find_table(path: Path, folder: Path) -> Path:
    for candidate in (path, folder / path):
        if candidate.is_file():
            return candidate
    near = [str(p) for p in (*path.parent.glob("*.csv"), *folder.glob("*.csv"))]
    hint = did_you_mean(str(path), near) or did_you_mean(path.name, [Path(p).name for p in near])
    raise InputError(
        f"{path}: no such table, nor under {folder}{hint}; make one with prepare_data.py toy, or check the path"
    )


def _find_pictures(table: Path, names: list[str], folder: Path) -> tuple[list[Path], list[int]]:
    paths, sides, rows = [], [], {}
    for row, name in enumerate(names, start=2):
        found = next((p for p in (folder / name, Path(name)) if p.is_file()), None)
        if found is None:
            raise InputError(
                f"{table}: row {row}, column wsi_file_names: no picture {folder / name}; "
                "paths are relative to --patch_data_path: correct it, or make the tiles again"
            )
        if name in rows:
            raise InputError(f"{table}: row {row}: {name} is in row {rows[name]} already; drop one of the two")
        try:
            with Image.open(found, formats=("JPEG", "PNG")) as image:
                sides.append(min(image.size))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(
                f"{table}: row {row}: {found} is not a readable JPEG or PNG ({str(error)[:60]}); make it again"
            ) from None
        rows[name] = row
        paths.append(found)
    return paths, sides
