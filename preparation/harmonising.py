"""The flags and the work of --harmonise: another platform's profiles on the scale of a reference, before and after."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config import DataSettings
from common.errors import InputError, warn
from common.files import atomic_path
from datasets.expression import ExpressionTable
from datasets.harmonise import METHODS, harmonise, read_reference
from figures import plots

if TYPE_CHECKING:  # torch takes seconds to import, and most calls need none
    from models.betavae import TrainedVAE
    from models.cloud import Distances

DPI = 160
WHEN = ("before", "after")


def add_harmonise(add: Callable[..., argparse.Action]) -> None:
    """Add the flags of `expression`."""
    add("--harmonise", choices=METHODS, help="bring profiles of another platform to the scale of --reference")
    add("--reference", metavar="TABLE", help="the training's table: its training donors are the reference")
    add(
        "--split_seed",
        type=int,
        help="of the split by donor, which says who the reference's training donors are; default: the checkpoint's, "
        f"else {DataSettings().split_seed}",
    )
    add("--reference_tissue", help="the reference's tissue to compare with; default: the profiles' own")


def check_harmonise(args: argparse.Namespace) -> None:
    """InputError where one of the flags is given without the other, before anything is read."""
    if args.harmonise and not args.reference:
        raise InputError(f"--harmonise {args.harmonise} needs the table of the training; name it with --reference")
    if not args.harmonise and (args.reference or args.reference_tissue or args.split_seed is not None):
        raise InputError(
            "--reference, --reference_tissue and --split_seed belong to --harmonise; add it, or leave them out"
        )


@dataclass
class Harmonised:
    """A table, the one that it was made of, and the reference's training donors."""

    table: ExpressionTable
    before: ExpressionTable
    reference: ExpressionTable
    report: dict[str, Any]


def harmonise_table(args: argparse.Namespace, table: ExpressionTable, vae: "TrainedVAE | None") -> Harmonised:
    """Return the table that --harmonise makes of `table`; the reference's split is the checkpoint's, where given."""
    split_seed = DataSettings().split_seed if args.split_seed is None else args.split_seed
    if vae is not None:
        if args.split_seed not in (None, vae.split_seed):
            warn(f"--split_seed {split_seed}: {args.checkpoint} was trained under {vae.split_seed}: that is used")
        split_seed = vae.split_seed
    reference = read_reference(args.reference, split_seed)
    after, report = harmonise(table, reference, args.harmonise, args.reference_tissue)
    return Harmonised(after, table, reference, report | {"split_seed": split_seed})


def describe_harmonised(report: dict[str, Any]) -> str:
    """Return one line: onto what, by what split, how many genes."""
    onto = ", ".join(
        f"{name} ({n['profiles']} profiles onto {n['reference_profiles']} of training donors)"
        for name, n in report["tissues"].items()
    )
    left = f"{len(report['genes_left_out'])} others left out"
    unit = f"; {report['unit_before']} before, {report['unit']} now" * (report["unit_before"] != report["unit"])
    split = f"split_seed {report['split_seed']}"
    return f"harmonised: {report['method']}, {onto}; {split}; {report['genes_shared']} genes of both, {left}{unit}"


def report_distances(
    report: dict[str, Any],
    vae: "TrainedVAE",
    checkpoint: str,
    table: ExpressionTable,
    made: Harmonised | None,
    picture: Path,
) -> list[str]:
    """Add how far the profiles of `table` are from the training cloud to `report`; return what is to be printed.

    Where they were harmonised (`made`), add what that changed, too, and draw it. Warnings name what is far, or say that
    the checkpoint cannot tell, and then nothing is drawn.
    """
    from models.cloud import KINDS
    from sources.profiles import say_that_distances_are_unknown

    if vae.cloud is None:
        say_that_distances_are_unknown(Path(checkpoint))
        return [] if made is None else [f"{picture}: not drawn, since {checkpoint} tells no distances to compare"]
    names = [str(name) for name in table.obs.index]
    found = _distances(vae, table)
    report["distance"] = found.report(names)
    lines = [f"distance to the training cloud: {found.summary(names)}"]
    if made is not None:
        before = _distances(vae, made.before)
        draw_harmonised(made, vae, before, found, picture)
        report["harmonised"] |= {"picture": str(picture), "far_before": int(before.far.sum())}
        report["harmonised"] |= {"far_after": int(found.far.sum())}
        for kind in KINDS:
            medians = [round(float(np.median(d.times[kind])), 3) for d in (before, found)]
            report["harmonised"][f"{kind}_before"], report["harmonised"][f"{kind}_after"] = medians
            lines.append(f"median {kind}, held-out donors' 1: {medians[0]:.2f} before, {medians[1]:.2f} after")
        if np.median(found.times["misfit"]) >= np.median(before.times["misfit"]):
            warn("harmonising brought the profiles no nearer to the training cloud; try the other method, or none")
        lines.append(f"{picture}: before and after on the map of the training donors")
    if found.far.any():
        remedy = "another platform, unit or tissue? See --harmonise" if made is None else "another tissue, bad quality?"
        warn(f"{found.summary(names)}: tiles made of profiles this far mean nothing; {remedy}")
    return lines


def _distances(vae: "TrainedVAE", table: ExpressionTable) -> "Distances":
    import torch

    return vae.distances(torch.from_numpy(table.aligned(vae.genes, 0.0)[0]))


def draw_harmonised(made: Harmonised, vae: "TrainedVAE", before: "Distances", after: "Distances", path: Path) -> None:
    """Write the picture: the training cloud and the profiles on its first two principal components, and the distances.

    The components are those of the reference's training donors in the standardised latent, without the dimensions that
    the encoder does not use.
    """
    import torch

    from models.conditioning import LATENT_FLOOR, standardise_latent

    mean, std = vae.latent_mean.cpu(), vae.latent_std.cpu()

    def latent(table: ExpressionTable) -> np.ndarray:
        mu = vae.encode(torch.from_numpy(table.aligned(vae.genes, 0.0)[0])).cpu()
        return standardise_latent(mu, mean, std)[:, std >= LATENT_FLOOR].numpy()

    cloud = latent(made.reference)  # (n, active)
    centre = cloud.mean(0)
    _, singular, axes = np.linalg.svd(cloud - centre, full_matrices=False)
    points = {name: (latent(t) - centre) @ axes[:2].T for name, t in zip(WHEN, (made.before, made.table), strict=True)}
    cloud = (cloud - centre) @ axes[:2].T
    tissues = made.reference.obs["tissue"].to_numpy()
    kinds = {"latent": "distance in the latent", "misfit": "misfit of the reconstruction"}
    figure = plots.harmonised(
        {tissue: cloud[tissues == tissue] for tissue in sorted(set(tissues))},
        points["before"],
        points["after"],
        np.square(singular[:2]) / np.square(singular).sum(),
        {
            title: (
                {"held-out\ndonors": after.own[kind], "before": before.times[kind], "after": after.times[kind]},
                after.limits[kind],
            )
            for kind, title in kinds.items()
        },
        f"training latent; --harmonise {made.report['method']}",
    )
    with atomic_path(path) as partial:
        plots.settled(figure, DPI).savefig(partial, format="png", dpi=DPI, metadata={"Software": None})
