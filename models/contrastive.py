"""Self-supervised pre-training of a classifier on unlabelled tiles, such as synthetic ones: SimCLR (Chen et al. 2020).

Two views of each tile are made at random; the network learns features by which a tile's two views find each other among
all views of the batch. A projection of the features takes part in the loss and is dropped afterwards.

Views keep what a pathologist would call the same tissue: a tile is turned, mirrored, cut to a square of 0.6 to 1 of its
side and stained a little more or less; it is never grey, inverted, blurred or of other hues, which SimCLR's own views
are and which would teach the network that stain and chromatin do not matter.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import InputError
from common.run import generator_for, seed_for
from models.classifier import IMAGENET_MEAN, IMAGENET_STD, Reader

# Optical density (R, G, B) of haematoxylin and eosin: Ruifrok & Johnston 2001, table 1; the third is across both.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
STRENGTH, BASE = 0.15, 0.03  # stain: times 1 +- STRENGTH, plus +- BASE; after Tellez et al. 2018, light; ours
LEAST_CROP = 0.6  # of the side
PROJECTED = 64  # numbers that the loss compares; Chen et al. 2020 have 128, for larger networks


VIEWS = (
    f"quarter turns, mirroring, squares of {LEAST_CROP:g} to 1 of the side, haematoxylin and eosin times 1 +- "
    f"{STRENGTH:g} and plus +- {BASE:g}"
)


@dataclass
class PretrainSettings:
    """How a network is pre-trained, on thousands of tiles. All but the temperature is ours.

    temperature: of the authors' command for CIFAR-10, small pictures and batches (google-research/simclr, README); for
    ImageNet in batches of 4096 it is 0.1, the best of Chen et al. 2020, table 5.
    """

    num_epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-4
    temperature: float = 0.5


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """Return the loss, a scalar, of projections z (2 n, d): rows k and n + k are two views of one tile.

    Chen et al. 2020, eq. 1: cross-entropy of the partner among the 2 n - 1 other views, by cosine over temperature.
    """
    z = nn.functional.normalize(z, dim=1)
    likeness = (z @ z.T) / temperature  # (2 n, 2 n)
    likeness = likeness.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), float("-inf"))
    partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return nn.functional.cross_entropy(likeness, partner)


def views(tiles: Tensor, generator: torch.Generator) -> Tensor:
    """Return one random view of each tile (n, 3, S, S) in [0, 1]: the same shape, in [0, 1]. See the module."""
    n, device = len(tiles), tiles.device
    draw = torch.rand(7, n, generator=generator).to(device)
    # A square of `size` of the side anywhere in the tile, turned by quarters and mirrored, as one affine map.
    size = LEAST_CROP + (1 - LEAST_CROP) * draw[0]
    reach = 1 - size
    quarter, mirror = (draw[1] * 4).floor(), torch.where(draw[2] < 0.5, -1.0, 1.0)
    cosine, sine = (quarter * torch.pi / 2).cos().round(), (quarter * torch.pi / 2).sin().round()
    x, y = (draw[3] * 2 - 1) * reach, (draw[4] * 2 - 1) * reach
    first, second = [size * cosine * mirror, -size * sine, x], [size * sine * mirror, size * cosine, y]
    maps = torch.stack([torch.stack(first, 1), torch.stack(second, 1)], 1)  # (n, 2, 3)
    grid = nn.functional.affine_grid(maps, list(tiles.shape), align_corners=False)
    cut = nn.functional.grid_sample(tiles, grid, padding_mode="reflection", align_corners=False)
    # More or less of each stain, in optical density.
    stain = torch.rand(2, n, 3, generator=generator).to(device) * 2 - 1
    matrix = _stain_matrix().to(device)  # (3 stains, RGB)
    amounts = -cut.clamp(min=1 / 255).log10().permute(0, 2, 3, 1) @ torch.linalg.inv(matrix)  # (n, S, S, stains)
    amounts = amounts * (1 + STRENGTH * stain[0])[:, None, None] + BASE * stain[1][:, None, None]
    return (10 ** -(amounts @ matrix)).clamp(0, 1).permute(0, 3, 1, 2)


def pretrain(
    network: nn.Module, read: Reader, n: int, settings: PretrainSettings, seed: int, device: torch.device
) -> tuple[dict[str, Tensor], list[float]]:
    """Return weights of `network` without its last layer, pre-trained on tiles 0 to n - 1, and the loss per epoch.

    `network` is not changed. It depends on `seed` alone: order and views of an epoch are drawn from (seed, epoch).
    InputError where there are fewer than two tiles, or the loss is not finite.
    """
    if n < 2:
        raise InputError(f"pre-training: {n} tiles, at least 2 were expected; name a folder or table with more")
    head = last_layer(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "projection"))
        dim = network.get_submodule(head).in_features
        projection = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, PROJECTED))
    encoder = deepcopy(network)
    encoder.set_submodule(head, projection)
    encoder.to(device).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    history = []
    for epoch in range(settings.num_epochs):
        generator = generator_for(seed, "pretrain", epoch)
        losses = []
        for rows in _batches(n, settings.batch_size, generator):
            tiles = torch.from_numpy(np.ascontiguousarray(read(rows))).to(device).permute(0, 3, 1, 2).float() / 255
            both = torch.cat([views(tiles, generator), views(tiles, generator)])  # (2 b, 3, S, S)
            loss = nt_xent(encoder(_normalised(both)), settings.temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if not np.isfinite(losses).all():
            raise InputError(f"pre-training: the loss is not finite in epoch {epoch + 1}; use fewer --pretrain_epochs")
        history.append(float(np.mean(losses)))
    state = {k: v.cpu() for k, v in encoder.state_dict().items() if not k.startswith(f"{head}.")}
    return state, history


def last_layer(network: nn.Module) -> str:
    """Return the name of a network's last linear layer: what a classifier's classes come from."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    order = torch.randperm(n, generator=generator).numpy()
    for rows in np.split(order, range(size, n, size)):
        if len(rows) > 1:  # one tile has no other to be told from
            yield rows


def _normalised(tiles: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=tiles.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (tiles - mean) / std


def _stain_matrix() -> Tensor:
    """Return haematoxylin, eosin and what is across both, (3, 3), each of length 1."""
    h, e = (nn.functional.normalize(torch.tensor(s), dim=0) for s in STAINS)
    return torch.stack([h, e, nn.functional.normalize(torch.linalg.cross(h, e), dim=0)])
