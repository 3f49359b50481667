"""What the figures share: how one is asked for, added to the command, written; the commands that make their inputs."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from common.errors import InputError
from common.files import write_text
from common.run import pick_device
from figures.print_style import save_figure
from figures.results import known, metrics_under, short
from paper.kept import Kept
from sources.gan import GAN
from sources.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Commands = argparse._SubParsersAction

THEIR_VALUES = "The paper's own values are not known to us, only how they were obtained: none stands beside these."
DIGITS = "%.6g"


@dataclass
class Drawn:
    """A figure, the table behind it and what is said under it."""

    figure: "Figure"
    table: pd.DataFrame
    caption: str
    measured: bool = True  # it shows values that the paper has too


@dataclass
class Ask:
    """What a figure is asked for: of which study, where it goes, with which seed."""

    folder: Path
    out: Path
    seed: int
    device: str

    @cached_property
    def study(self) -> Study:
        """The folder of runs and stores; opened when first needed: some figures need metrics alone."""
        return Study(self.folder, pick_device(self.device))

    @property
    def kept(self) -> Kept:
        """What figures of this folder computed before."""
        return Kept(self.out / ".kept")

    def command(self, stage: str) -> str:
        """Return the command line that makes the inputs of `stage`."""
        return command_of(stage, self.folder)

    def metrics(self, stage: str, key: str) -> dict[str, dict[str, Any]]:
        """Return the metrics.json under <folder>/<stage> that have `key`, by folder; InputError where none has."""
        found = {name: m for name, m in metrics_under(self.folder / stage).items() if key in m}
        if not found:
            raise InputError(f"{self.folder / stage}: no metrics.json with {key} in it")
        return found


_VAE, _GAN = "--config {f}/configs/betavae_tissues.json", "--config {f}/configs/gan_run_lung.json"
_RUN = f"python histopathology_gan.py {_GAN} --model_dir"
MADE_BY = {
    "tiles": "python prepare_data.py tiles --slides {f}/slides/lung --out {f}/tiles/lung",
    "vae": f"python betaVAE_training.py {_VAE}",
    "samples": f"python betaVAE_sample.py {_VAE}",
    "shift": f"python betaVAE_interpolation.py {_VAE} --type tissue, and the same with --type sex",
    "gan": f"{_RUN} {{f}}/checkpoints/rna-gan_lung --loss_type wganvae",
    "kid": f"{_RUN} {{f}}/checkpoints/wgangp_lung --loss_type wgangp --eval_every N, and the same with wgan, wganvae",
    "fid": "python fid.py --split test --out {f}/fid/matrix --matrix real_lung=real:{f}/configs/gan_run_lung.json "
    "gan_lung={f}/checkpoints/gan_lung rna-gan_lung={f}/checkpoints/rna-gan_lung, and the same three of brain",
    "conditioning": f"python evaluate_conditioning.py {_GAN} --checkpoint {{f}}/checkpoints/rna-gan_lung --out "
    "{f}/conditioning/lung",
    "geo": f"python generate_tissue_images.py {_GAN} --checkpoint {{f}}/checkpoints/rna-gan_lung.model --vae "
    "--rna_data {f}/geo/GSE120795_lung_proteincoding.csv --random_patient --out {f}/generated/rna-gan_lung/GSE120795",
    "classifier": "python wsi_model.py --patch_data_path {f}/images_form --csv_path real_toy_example.csv --out "
    "{f}/classifier/real",
    "pretrain": "python wsi_model.py --patch_data_path {f}/images_form --csv_path real_toy_example.csv --train_tiles N "
    "--num_epochs 100 --patience 0 --out {f}/classifier/scratch_N, and the same with --pretrain "
    "rna-gan_toy_example.csv",
    "configs": "python prepare_data.py demo --out {f}",
}


def command_of(stage: str, folder: Path) -> str:
    """Return the command line that makes the inputs of `stage` in a study's folder."""
    return MADE_BY[stage].format(f=folder)


@contextmanager
def made_by(ask: Ask, stage: str) -> Iterator[None]:
    """Let an InputError of what is inside name the command that makes what is missing."""
    try:
        yield
    except InputError as error:
        said = str(error)
        raise InputError(said if "made by: " in said else f"{said}; made by: {ask.command(stage)}") from None


def add_figure(
    commands: Commands, name: str, what: str, manual: str, run: Callable[[argparse.Namespace], int | None]
) -> None:
    """Add a sub-command with its manual and the flags that all figures have."""
    parser = commands.add_parser(
        name, help=what, description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    add("--study", "--demo", default="demo", help="folder with configs/, checkpoints/, fid/, ... (default demo)")
    add("--out", help="folder of the figures; default <study>/drawn")
    add("--seed", type=int, default=99, help="of maps and drawn tiles (default 99)")
    add("--device", default="0", help="a GPU's index (else the CPU), cuda (insists) or cpu")
    parser.set_defaults(run=run)


def asked(args: argparse.Namespace) -> Ask:
    """Return what the flags ask for."""
    folder = Path(args.study)
    return Ask(folder, Path(args.out) if args.out else folder / "drawn", args.seed, args.device)


def write(out: Path, drawn: Mapping[str, Drawn]) -> None:
    """Write each figure as PDF and PNG, its table as CSV, its caption as text; print where they are."""
    for name, one in drawn.items():
        save_figure(one.figure, out / name)
        write_text(out / f"{name}.csv", one.table.to_csv(index=False, float_format=DIGITS, lineterminator="\n"))
        write_text(out / f"{name}.txt", one.caption + f" {THEIR_VALUES}" * one.measured + "\n")
        print(f"{out / name}.pdf, .png, .csv, .txt")


def model_line(*gans: GAN) -> str:
    """Return one sentence on each GAN: loss, epochs, size, digests; what a published file does not say is not known."""
    lines = []
    for gan in gans:
        state, settings = gan.state, gan.state["settings"]
        vae = f", VAE {known(state['vae_digest'], '.12')}" if gan.conditional else ""
        seen = f"{state['images_seen']} images shown" if "images_seen" in state else "images shown not known"
        lines.append(
            f"{gan.run}{f' ({gan.what})' * ('published' in state)}: loss {settings['loss_type']}, epoch "
            f"{known(state['epoch'], 'g')}, {seen}, {state['img_size']} px, seed {known(settings.get('seed'))}, digest "
            f"{short(gan.digest)}{vae}."
        )
    return " ".join(lines)


def listed(words: Iterable[object]) -> str:
    """Return "a, b, c" of different words in order of appearance."""
    return ", ".join(dict.fromkeys(str(word) for word in words))
