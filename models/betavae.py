"""The beta-VAE of gene expression: network, loss, and the trained model that the later stages use.

Checkpoint kind "betavae" (best.pt), enough to encode a stranger's profile with no table at hand. Its state:
    model_args, model      constructor arguments and weights
    genes, unit            gene order (Ensembl ids) and the unit of a profile, e.g. TPM
    scaler                 transform (name), mean, std (genes,), missing (rule for absent genes)
    latent                 mean, std (z,) of the encoder's means over the training rows, n
    by_tissue              tissue -> the Gaussian of models/latents.py: mean, std, n, factor (k, z), residual (z,)
    residual_std           (genes,) root mean square of the reconstruction's error on validation rows, z-scores
    held_out_distances     latent, misfit (m,): the validation rows' distances from the training cloud (models/cloud.py)
    split_seed, min_gene_coverage, missing_genes, settings, epoch, validation
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checkpoint import load_checkpoint, resolve_checkpoint
from common.errors import InputError
from models.cloud import Distances, TrainingCloud, nearest_cloud
from models.expression_scaler import ExpressionScaler
from models.joint import JointBatchNorm1d
from models.latents import fit_gaussian, latent_summary

LOGVAR_LIMIT = 20.0  # ours: exp(20) is 5e8; keeps the KL term finite through the first steps
ROWS = 1024  # rows per pass when encoding or decoding a table


def _blocks(sizes: list[int]) -> list[nn.Module]:
    """Linear-BatchNorm-LeakyReLU(0.01) from each size to the next; paper, STAR Methods."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), JointBatchNorm1d(n_out), nn.LeakyReLU(0.01)]
    return layers


class BetaVAE(nn.Module):
    """Encoder, latent and decoder of z-scored log expression. Defaults: paper, STAR Methods (303 M parameters)."""

    def __init__(
        self,
        n_genes: int,
        encoder_sizes: list[int] = (6000, 4000, 2048),
        decoder_sizes: list[int] = (4000, 6000),
        latent_dim: int = 2048,
        input_dropout: float = 0.5,
        decoder_output: str = "linear",  # linear | tanh (published: z-scores beyond 1 are out of reach)
    ) -> None:
        """Build the network. InputError for a decoder_output that is not known."""
        super().__init__()
        outputs = {"linear": nn.Identity, "tanh": nn.Tanh}
        if decoder_output not in outputs:
            raise InputError(f"decoder_output {decoder_output!r}: expected one of {', '.join(outputs)}")
        self.encoder = nn.Sequential(nn.Dropout(input_dropout), *_blocks([n_genes, *encoder_sizes]))
        self.z_mu = nn.Linear(encoder_sizes[-1], latent_dim)
        self.z_logvar = nn.Linear(encoder_sizes[-1], latent_dim)
        decoder = _blocks([latent_dim, *decoder_sizes])
        self.decoder = nn.Sequential(*decoder, nn.Linear(decoder_sizes[-1], n_genes), outputs[decoder_output]())

    def draw(self, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return what a training step of n rows draws: noise (n, z) ~ N(0, I), and `kept` (n, genes) of the dropout.

        kept: 0 where a gene is left out, else 1 / (1 - input_dropout).
        """
        kept = F.dropout(torch.ones(n, self.encoder[1].in_features, device=device), self.encoder[0].p)
        return torch.randn(n, self.z_mu.out_features, device=device), kept

    def encode(self, x: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (n, genes) z-scores -> mean and log variance of the posterior, (n, z) each; `kept`: see `draw`."""
        h = self.encoder(x) if kept is None else self.encoder[1:](x * kept)  # (n, encoder_sizes[-1])
        return self.z_mu(h).float(), self.z_logvar(h).float().clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)

    def decode(self, z: Tensor) -> Tensor:
        """z (n, z) -> reconstruction (n, genes), z-scores."""
        return self.decoder(z).float()

    def forward(
        self, x: Tensor, noise: Tensor | None = None, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (n, genes) -> reconstruction (n, genes), mu and logvar (n, z); `noise` and `kept` of `draw` may be given.

        All three are fp32, under autocast too, and so are the noise and the sum of it and mu.
        """
        mu, logvar = self.encode(x, kept)
        if noise is None:
            noise = torch.randn_like(mu)
        return self.decode(mu + noise * (0.5 * logvar).exp()), mu, logvar


def beta_vae_loss(x: Tensor, reconstruction: Tensor, mu: Tensor, logvar: Tensor, beta: float) -> dict[str, Tensor]:
    """Return the parts of the loss, scalars: total = reconstruction + beta kl; Higgins et al. 2017, eq. 4.

    reconstruction: squared error, mean over genes and rows. kl: of N(mu, exp(logvar)) from N(0, I), summed over latent
    dimensions, mean over rows; Kingma & Welling 2014, appendix B. The names mean the same in training and validation.
    """
    squared = (reconstruction - x).square().mean()
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()
    return {"total": squared + beta * kl, "reconstruction": squared, "kl": kl}


class TrainedVAE:
    """A trained beta-VAE with its scaler and gene order: linear units in and out. Evaluation mode, no grad."""

    def __init__(
        self, state: dict[str, Any], device: torch.device | str = "cpu", where: object = "the beta-VAE checkpoint"
    ) -> None:
        """Rebuild the network of `state` on `device`; the weights are used as they are, not copied, on the CPU.

        `where` names the checkpoint in messages. InputError where the state's parts do not fit one another.
        """
        try:
            with torch.device("meta"):
                model = BetaVAE(**state["model_args"])
            model.load_state_dict(state["model"], assign=True)
            self.scaler = ExpressionScaler.from_state(state["scaler"]).to(device)
            self.genes: list[str] = state["genes"]
            self.unit: str = state["unit"]
            self.split_seed: int = state["split_seed"]
            self.min_gene_coverage: float = state["min_gene_coverage"]
            latent = state["latent"]
            self.by_tissue: dict[str, dict[str, Any]] = state["by_tissue"]
            self.residual_std: Tensor | None = state["residual_std"]
            self.cloud = TrainingCloud.of(state)  # None in an older file
        except (KeyError, TypeError, RuntimeError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            reason = lines[min(1, len(lines) - 1)][:160]  # torch's second line says what is missing or of another size
            raise InputError(
                f"{where}: holds another architecture than it states ({reason}); train it again, or copy it again"
            ) from None
        if len(self.genes) != state["model_args"]["n_genes"]:
            raise InputError(
                f"{where}: names {len(self.genes)} genes, its network takes {state['model_args']['n_genes']}; train it "
                "again, or copy it again"
            )
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)
        self.state = state
        self.latent_dim: int = state["model_args"]["latent_dim"]
        self.latent_mean: Tensor | None = latent["mean"].to(device) if latent else None  # (z,)
        self.latent_std: Tensor | None = latent["std"].to(device) if latent else None  # (z,)

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device | str = "cpu") -> "TrainedVAE":
        """Return the model of a checkpoint's state. InputError where its parts do not fit one another."""
        return cls(state, device)

    @classmethod
    def open(cls, path: str | Path, device: torch.device | str = "cpu") -> tuple["TrainedVAE", str]:
        """Return the model at `path`, a file or a run folder, and its digest. InputError names the file."""
        file = resolve_checkpoint(path)
        state, digest = load_checkpoint(file, "betavae")
        return cls(state, device, file), digest

    def gene_weights(self) -> Tensor:
        """Return what each gene weighs, (genes,) float64 on the CPU, sums to 1.

        A gene's share of the squared L2 norm of the encoder's first layer. Inputs being z-scores of variance 1, it is
        its share of the variance of that layer's sums, were genes independent; ours.
        """
        squared = self.model.encoder[1].weight.double().square().sum(0).cpu()  # encoder[0] is the dropout
        return squared / squared.sum()

    @torch.no_grad()
    def scale(self, values: Tensor) -> Tensor:
        """values (n, genes) in linear units, NaN where a gene is missing -> z-scores (n, genes) on the device."""
        if values.ndim != 2 or values.shape[1] != len(self.genes):
            raise InputError(f"profiles of {len(self.genes)} genes were expected, found {tuple(values.shape)}")
        return self.scaler.transform(values.to(self.device, torch.float32))

    @torch.no_grad()
    def posterior(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """values (n, genes) in linear units, NaN = missing -> mu and logvar, (n, z) each."""
        parts = [self.model.encode(self.scale(block)) for block in values.split(ROWS)]
        return torch.cat([mu for mu, _ in parts]), torch.cat([logvar for _, logvar in parts])

    def encode(self, values: Tensor) -> Tensor:
        """values (n, genes) in linear units, NaN = missing -> the encoder's mean mu (n, z)."""
        return self.posterior(values)[0]

    @torch.no_grad()
    def measure(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """values (n, genes) in linear units, NaN = missing -> the encoder's mean mu (n, z), misfit (n,), on the CPU.

        misfit: root mean square error of the reconstruction over the genes that are not missing, z-scores.
        """
        found = []
        for block in values.split(ROWS):
            x, seen = self.scale(block), ~block.isnan().to(self.device)
            mu = self.model.encode(x)[0]
            error = (self.model.decode(mu) - x).square() * seen
            found.append((mu.cpu(), (error.sum(1) / seen.sum(1).clamp(min=1)).sqrt().cpu()))
        return torch.cat([mu for mu, _ in found]), torch.cat([misfit for _, misfit in found])

    def distances(self, values: Tensor) -> Distances | None:
        """values (n, genes) in linear units, NaN = missing -> how far they are from the training cloud.

        None where the checkpoint does not hold what is needed.
        """
        return self.cloud.distances(*self.measure(values)) if self.cloud else None

    @torch.no_grad()
    def decode_scaled(self, z: Tensor) -> Tensor:
        """z (n, z) -> z-scores (n, genes)."""
        return torch.cat([self.model.decode(block) for block in z.to(self.device).split(ROWS)])

    def decode(self, z: Tensor) -> Tensor:
        """z (n, z) -> profiles (n, genes) in linear units, >= 0."""
        return self.scaler.inverse(self.decode_scaled(z))


def finished_state(
    state: dict[str, Any], values: Tensor, tissues: list[str], held_out: Tensor, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return `state` with what only a trained network can tell: latent, by_tissue, residual_std, held_out_distances.

    `values` (n, genes): the training rows, linear units, `tissues` one name per row; `held_out` (m, genes): validation
    rows. `state` has the other keys of the module's docstring and is not changed; weights are shared, not copied.
    """
    vae = TrainedVAE(state | {"latent": None, "by_tissue": {}, "residual_std": None}, device)
    mu, logvar = vae.posterior(values)
    rows = {t: torch.tensor([i for i, name in enumerate(tissues) if name == t]) for t in sorted(set(tissues))}
    error = vae.decode_scaled(vae.encode(held_out)) - vae.scale(held_out)
    by_tissue = {t: fit_gaussian(mu[i], logvar[i]) for t, i in rows.items()}
    new, misfit = vae.measure(held_out)
    return state | {
        "latent": latent_summary(mu),
        "by_tissue": by_tissue,
        "held_out_distances": {"latent": nearest_cloud(new, by_tissue)[0].float(), "misfit": misfit},
        "residual_std": error.square().mean(0).sqrt().cpu(),
    }
