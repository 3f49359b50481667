"""Tiles from a trained generator: tile k depends on (seed, k) and its profile only, bit for bit."""

from collections.abc import Iterator

import torch

from common.run import generator_for
from models.conditioning import ConditionedGenerator

# The generator always runs on CHUNK tiles, k // CHUNK = const: a kernel may be chosen by batch size and then round
# differently, which would make a tile depend on how many were asked for.
CHUNK = 16


@torch.inference_mode()
def generate_tiles(
    generator: ConditionedGenerator,
    n: int,
    seed: int,
    condition: torch.Tensor | None = None,
    *,
    start: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    guidance: float = 1.0,
) -> Iterator[torch.Tensor]:
    """Yield tiles start..start + n - 1 as float32 (b, 3, H, W) in [-1, 1] on the CPU, b <= `batch_size`.

    `condition`: None (no expression: the learned null of an RNA-GAN), (z,) for all tiles, or (n, z) with row i for tile
    start + i: what Profiles.condition gives. `guidance`: see ConditionedGenerator.enter. `generator` is put into eval
    mode. `batch_size` only groups what is yielded. Under the published rule (standardise = batch) a tile depends on its
    chunk: the rule's own doing.
    """
    generator.eval()
    stop = start + n
    waiting, held = [], 0
    for first in range(start - start % CHUNK, stop, CHUNK):
        noise = torch.cat([generator.draw(1, generator_for(seed, "tile", k)) for k in range(first, first + CHUNK)])
        c = condition
        if condition is not None and condition.ndim == 2:  # tiles outside start..stop are made and dropped
            c = condition[(torch.arange(first, first + CHUNK) - start).clamp(0, n - 1).to(condition.device)].cpu()
        elif condition is not None:
            c = condition.cpu().expand(CHUNK, -1)
        c = c if c is None else c.to(device)
        tiles = generator(noise.to(device), c, guidance=guidance).float().cpu()  # (CHUNK, 3, H, W)
        waiting.append(tiles[max(start - first, 0) : min(stop - first, CHUNK)])
        held += len(waiting[-1])
        while held >= batch_size or (first + CHUNK >= stop and held):
            ready = torch.cat(waiting)
            yield ready[:batch_size]
            waiting, held = [ready[batch_size:]], max(held - batch_size, 0)


@torch.inference_mode()
def sample_tiles(
    generator: ConditionedGenerator, n: int, seed: int, conditions: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:
    """Return (about `n` tiles (n, 3, H, W), columns) for a grid: fixed noise; a row per profile of `conditions` (m, z).

    The columns of such a grid have the same noise: what differs down a column is the expression's doing.
    """
    generator.eval()
    columns = 8 if conditions is None else max(n // len(conditions), 2)
    count = n if conditions is None else columns
    device = next(generator.parameters()).device
    noise = torch.cat([generator.draw(1, generator_for(seed, "grid", k)) for k in range(count)]).to(device)
    if conditions is None:
        rows = [generator(part).float().cpu() for part in noise.split(CHUNK)]
    else:
        rows = [generator(noise, c.to(device).expand(count, -1)).float().cpu() for c in conditions]
    return torch.cat(rows), columns
