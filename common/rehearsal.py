"""A dry run: all that a training does, in two steps and a temporary place, before the hours that it takes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from common.distributed import current
from common.errors import Stopped
from common.memory import PeakMemory
from common.run import refuse_no_folder
from common.stopping import Interrupted, signals_handled, stop_requested
from common.words import bytes_in_words


def rehearse(
    train: Callable[[Path, int], None], save_dir: str | Path, device: torch.device, estimate: int, what: str
) -> None:
    """Call train(folder, 1), then train(folder, 2): a step, and one more that goes on from what the first saved.

    The folder has the run's name, and lies in a hidden one beside the run's, on the same disk; that is removed at the
    end, however it ends. Then one line says `what` went well, and the memory taken against the `estimate` (bytes).
    InputError without a save_dir, as the run gives it. Stopped where a signal asks for it.
    """
    refuse_no_folder(save_dir)
    run, peak, taken = Path(save_dir), PeakMemory(device), 0.0
    above = next(folder for folder in run.parents if folder.is_dir())
    # Several processes of one job share it: they know one port.
    place = above / f".{run.name}.dry_run.{os.environ.get('MASTER_PORT') or os.getpid()}"
    try:
        with signals_handled():
            for steps in (1, 2):
                train(place / run.name, steps)
                current().wait()  # until the first rank has saved
                if steps == 1 or device.type == "cuda":  # on a CPU what was freed is kept: no more is told from it
                    taken = peak.taken()
                if current().any(stop_requested()):  # after the last step, which nobody waited for
                    raise Stopped("")
    except (Stopped, Interrupted):
        raise Stopped("dry run: stopped by a signal; nothing of it is kept") from None
    finally:
        if current().main:
            shutil.rmtree(place, ignore_errors=True)
    print(
        f"dry run: {what}: all went well; memory {bytes_in_words(taken)} measured, "
        f"{bytes_in_words(estimate)} estimated; {run} was not touched",
        flush=True,
    )
