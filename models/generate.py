"""Tiles from a trained generator: tile k depends on (seed, k) and its profile only, bit for bit."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch

from common.distributed import alone
from common.errors import warn
from common.run import generator_for
from models.conditioning import ConditionedGenerator

# The generator always runs on CHUNK tiles, k // CHUNK = const: a kernel may be chosen by batch size and then round
# differently, which would make a tile depend on how many were asked for.
CHUNK = 16
WARM_UP = 3  # forward passes before one is recorded: libraries set themselves up in the first
Draw = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
_recorded: WeakKeyDictionary[ConditionedGenerator, tuple[Any, Draw | None]] = WeakKeyDictionary()


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
    first_row: int | None = None,
) -> Iterator[torch.Tensor]:
    """Yield tiles start..start + n - 1 as float32 (b, 3, H, W) in [-1, 1] on the CPU, b <= `batch_size`.

    `condition`: None (no expression: the learned null of an RNA-GAN), (z,) for all tiles, or (m, z) with row i for tile
    `first_row` (None: start) + i: what Profiles.condition gives. `guidance`: see ConditionedGenerator.enter.
    `generator` is put into eval mode. `batch_size` only groups what is yielded. Under the published rule (standardise =
    batch) a tile depends on its chunk, the rule's own doing: give the rows of whole chunks (`whole_chunks`).
    """
    generator.eval()
    stop, first_row = start + n, start if first_row is None else first_row
    waiting, held = [], 0
    for first in range(start - start % CHUNK, stop, CHUNK):
        noise = torch.cat([generator.draw(1, generator_for(seed, "tile", k)) for k in range(first, first + CHUNK)])
        c = condition
        if condition is not None and condition.ndim == 2:  # tiles outside start..stop are made and dropped
            rows = (torch.arange(first, first + CHUNK) - first_row).clamp(0, len(condition) - 1)
            c = condition[rows.to(condition.device)].cpu()
        elif condition is not None:
            c = condition.cpu().expand(CHUNK, -1)
        c = c if c is None else c.to(device)
        noise = noise.to(device)
        with alone():  # a chunk is one process's: under the published rule its statistics are of no other's tiles
            tiles = chunk_drawer(generator, noise, c, guidance)(noise, c).float().cpu()  # (CHUNK, 3, H, W)
        waiting.append(tiles[max(start - first, 0) : min(stop - first, CHUNK)])
        held += len(waiting[-1])
        while held >= batch_size or (first + CHUNK >= stop and held):
            ready = torch.cat(waiting)
            yield ready[:batch_size]
            waiting, held = [ready[batch_size:]], max(held - batch_size, 0)


def whole_chunks(start: int, n: int) -> range:
    """Return the tiles that are drawn to have start..start + n - 1: all of their chunks."""
    return range(start - start % CHUNK, -(-(start + n) // CHUNK) * CHUNK)


def cut_at_chunks(stretches: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return stretches (first, stop) of tiles cut where a chunk ends: pieces that no two processes draw twice."""
    pieces = []
    for first, stop in stretches:
        ends = [*range(first - first % CHUNK + CHUNK, stop, CHUNK), stop]
        pieces += zip([first, *ends[:-1]], ends, strict=True)
    return pieces


def chunk_drawer(
    generator: ConditionedGenerator, noise: torch.Tensor, c: torch.Tensor | None, guidance: float = 1.0
) -> Draw:
    """Return draw(noise, c) -> tiles, for inputs shaped as these: the generator, on a GPU as a CUDA graph.

    Every chunk has one shape, so its kernels are recorded once and then launched together; the latest recording is kept
    as long as the generator. Tiles of a recording are overwritten by the next call. Where recording fails, a warning
    says why and the generator itself draws. To be called in inference mode.
    """
    plain = partial(generator, guidance=guidance)
    if noise.device.type != "cuda":
        return plain
    key = guidance, noise.shape, c is None, [(p.data_ptr(), p.dtype) for p in generator.parameters()]
    if generator not in _recorded or _recorded[generator][0] != key:
        try:
            _recorded[generator] = key, _record(plain, noise, c)
        except RuntimeError as error:
            warn(f"tiles are drawn without a CUDA graph, the same but slower: {str(error)[:160]}")
            _recorded[generator] = key, None
    return _recorded[generator][1] or plain


def _record(plain: Draw, noise: torch.Tensor, c: torch.Tensor | None) -> Draw:
    """Record plain(noise, c) as a CUDA graph on their GPU: warmed up on a side stream, then captured."""
    here, noise, c = noise.device, noise.clone(), None if c is None else c.clone()  # the recording reads these
    with torch.cuda.device(here):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                plain(noise, c)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            tiles = plain(noise, c)

    def draw(new_noise: torch.Tensor, new_c: torch.Tensor | None) -> torch.Tensor:
        noise.copy_(new_noise)
        if c is not None:
            c.copy_(new_c)
        with torch.cuda.device(here):
            graph.replay()
        return tiles

    return draw


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
