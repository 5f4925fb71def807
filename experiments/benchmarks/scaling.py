"""Cost of training as work grows: python experiments/benchmarks/scaling.py [--figure FILE.png]

Prints two Markdown tables in eight minutes and draws them. The first has the trainer's step with HTS-AT tiny and
RoBERTa base: milliseconds per clip against the batch size, the length of the clips (fusion=aff, which reads all of a
clip), and the number of processes at the same global batch, which share the cores of this machine or have a GPU each.
Times are medians.

The second simulates one rank of many in one process, with a fixed number of clips per rank: copying the gathered
embeddings, and forward and backward of the symmetric cross entropy. With `loss.gather=full` a rank has the whole
similarity matrix, whose memory grows with the square of the number of ranks, with `local` only its own rows. Memory is
the peak of the loss; where a matrix does not fit, it is computed from the largest that does, and no time is given.

Milliseconds per clip on two cores (float32) and on an H200 with a slow host (float32, weights and clips on the GPU):

| | batch 2 | 4 | 8 | 16 | 32 | 5 s | 10 s | 20 s | 30 s | 60 s | 1 process | 2 |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
| two cores | 484 | 367 | 297 | 276 | 327 | 345 | 346 | 356 | 376 | 387 | 297 | 167 |
| H200 | 25.8 | 14.6 | 6.8 | 3.5 | 2.1 | 14.9 | 16.0 | 20.6 | 19.5 | 20.2 | 6.0 | not run |

The lengths are those of four clips with fusion=aff: above the window of 10 s, one global and three local views. Two
processes with a thread each are faster than one with two threads. Up to a batch of 32 the H200 waits for its host to
launch the kernels. The second table is in docs/scaling.md.
"""

import argparse
import inspect
import multiprocessing
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from clap.config.compose import compose_config
from clap.device import choose_device, describe_machine
from clap.loss import SymmetricCrossEntropyLoss
from clap.model import Clap
from clap.plotting import BLUE, ORANGE, new_figure, save_png, style_axes
from clap.training.parallel import wrap_model
from clap.training.trainer_settings import TrainerSettings
from experiments.benchmarks.steps import (
    FULL,
    MISSING,
    SMALL,
    load_batch,
    make_trainer,
    measure_peak,
    open_scenes,
    time_in_turn,
    train_step,
)

BATCHES, DURATIONS, LENGTH_BATCH, PROCESS_BATCH = (2, 4, 8, 16, 32), (5.0, 10.0, 20.0, 30.0, 60.0), 4, 16
CLIPS_PER_RANK, EMBED_DIM = 64, 512
GLOBAL_BATCHES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
FREE_SHARE = 0.6  # of the free memory, up to which a loss is run
REPEATS = 3


@dataclass
class Sizes:
    """What is run, with tiny models and short lists for a quick check."""

    overrides: Sequence[str] = FULL
    batches: Sequence[int] = BATCHES
    durations: Sequence[float] = DURATIONS
    process_batch: int = PROCESS_BATCH
    global_batches: Sequence[int] = GLOBAL_BATCHES


SMALL_SIZES = Sizes(SMALL, (2, 4), (3.0, 6.0), 4, (128, 256))


@dataclass
class LossCost:
    """Seconds (None if not run) and bytes of a loss on one rank."""

    seconds: float | None
    memory: float


def build_clap(overrides: Sequence[str], device: torch.device) -> Clap:
    torch.manual_seed(0)
    return Clap.from_config(compose_config(list(overrides))).to(device)


def time_batches(sizes: Sizes, device: torch.device) -> dict[float, float]:
    """Batch size -> seconds of a step."""
    clap = build_clap(sizes.overrides, device)
    loaders = {size: open_scenes(clap, size) for size in sizes.batches}
    return time_loaders(clap, loaders, device)


def time_durations(sizes: Sizes, device: torch.device) -> dict[float, float]:
    """Seconds of the clips -> seconds of a step, with global and local views of clips longer than the window."""
    clap = build_clap([*sizes.overrides, "fusion=aff"], device)
    loaders = {duration: open_scenes(clap, LENGTH_BATCH, duration=duration) for duration in sizes.durations}
    return time_loaders(clap, loaders, device)


def time_loaders(clap: Clap, loaders: Mapping[float, DataLoader], device: torch.device) -> dict[float, float]:
    """Seconds of a step on the first batch of each loader."""
    trainer = make_trainer(clap, next(iter(loaders.values())))
    batches = {key: load_batch(loader) for key, loader in loaders.items()}
    calls = {key: partial(train_step, trainer, batch) for key, batch in batches.items()}
    return time_in_turn(calls, REPEATS, device=device)


def time_processes(count: int, sizes: Sizes, device: torch.device, *, sync_batchnorm: bool = False) -> float:
    """Seconds of a step of the global batch in `count` processes."""
    context = multiprocessing.get_context("spawn")
    queue, port = context.Queue(), find_port()
    workers = [
        context.Process(target=run_rank, args=(queue, number, count, port, sizes, device.type, sync_batchnorm))
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed := [worker.exitcode for worker in workers if worker.exitcode]:
        raise RuntimeError(f"{len(failed)} of {count} processes failed; their messages are above")
    return queue.get()


def run_rank(
    queue: multiprocessing.Queue,
    number: int,
    count: int,
    port: int,
    sizes: Sizes,
    device_type: str,
    sync_batchnorm: bool,
) -> None:
    """One process: its part of the global batch, with the gradients averaged over all."""
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    if device_type == "cuda":
        torch.cuda.set_device(number)
    address = f"tcp://127.0.0.1:{port}"
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=address, rank=number, world_size=count)
    device = torch.device("cuda", number) if device_type == "cuda" else torch.device("cpu")
    clap = build_clap(sizes.overrides, device)
    loader = open_scenes(clap, sizes.process_batch // count)
    settings = {"sync_batchnorm": True} if sync_batchnorm else {}
    trainer, batch = make_trainer(clap, loader, **settings), load_batch(loader)
    trainer.model = wrap_model(clap)
    seconds = time_in_turn({"step": lambda: train_step(trainer, batch)}, REPEATS, device=device)["step"]
    if number == 0:
        queue.put(seconds)
    torch.distributed.destroy_process_group()


def find_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def simulate_loss(batch: int, *, local: bool, device: torch.device) -> LossCost:
    """Forward and backward of the loss on one rank, whose rows are the first of the global batch."""
    criterion, rows = SymmetricCrossEntropyLoss(), CLIPS_PER_RANK if local else batch
    audio, text = (normalize(torch.randn(batch, EMBED_DIM, device=device), dim=1).requires_grad_() for _ in range(2))
    ids, scale = torch.arange(batch, device=device), torch.tensor(10.0, device=device, requires_grad=True)
    whole = {"all_audio": audio, "all_text": text, "all_clip_ids": ids} if local else {}

    def step() -> None:
        criterion(audio[:rows], text[:rows], scale, ids[:rows], **whole).backward()

    memory = measure_peak(step, device)
    return LossCost(time_in_turn({"loss": step}, REPEATS, device=device)["loss"], memory)


def simulate_losses(batches: Sequence[int], *, local: bool, device: torch.device) -> dict[int, LossCost]:
    """Global batch -> cost on one rank; a matrix that does not fit is computed from the largest that does."""
    if local and "all_audio" not in inspect.signature(SymmetricCrossEntropyLoss.forward).parameters:
        return {}
    costs: dict[int, LossCost] = {}
    largest = batches[0]
    for batch in batches:
        growth = (batch / largest) ** (1 if local else 2)
        memory = costs[largest].memory * growth if costs else 0.0
        if memory < FREE_SHARE * free_memory(device):
            costs[batch], largest = simulate_loss(batch, local=local, device=device), batch
        else:
            costs[batch] = LossCost(None, memory)
    return costs


def free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def time_gather(batch: int, device: torch.device) -> float:
    """Seconds to copy the audio and text embeddings of all ranks into one tensor each, without the network."""
    parts: list[Tensor] = [
        torch.randn(CLIPS_PER_RANK, EMBED_DIM, device=device) for _ in range(batch // CLIPS_PER_RANK)
    ]
    return time_in_turn({"gather": lambda: (torch.cat(parts), torch.cat(parts))}, REPEATS, device=device)["gather"]


def measure_steps(sizes: Sizes, device: torch.device) -> dict[str, dict[float, float]]:
    """Print the first table; what grows -> its value -> milliseconds per clip."""
    found: dict[str, dict[float, float]] = {}
    print("| what grows | value | step, ms | ms per clip |\n|---|--:|--:|--:|")

    def add(name: str, seconds: Mapping[float, float], clips: Mapping[float, int]) -> None:
        found[name] = {value: 1000 * time / clips[value] for value, time in seconds.items()}
        for value, time in seconds.items():
            print(f"| {name} | {value:g} | {1000 * time:.0f} | {found[name][value]:.1f} |", flush=True)

    add("batch size", time_batches(sizes, device), {size: size for size in sizes.batches})
    add("seconds of a clip", time_durations(sizes, device), dict.fromkeys(sizes.durations, LENGTH_BATCH))
    gpus = torch.cuda.device_count() if device.type == "cuda" else 2  # processes share the cores of a CPU
    counts = [count for count in (1, 2, 4, 8) if count <= gpus]
    processes = {count: time_processes(count, sizes, device) for count in counts}
    add("processes", processes, dict.fromkeys(processes, sizes.process_batch))
    name = f"processes, trainer.sync_batchnorm=true | {counts[-1]}"
    if device.type == "cuda" and counts[-1] > 1 and "sync_batchnorm" in {f.name for f in fields(TrainerSettings)}:
        seconds = time_processes(counts[-1], sizes, device, sync_batchnorm=True)
        print(f"| {name} | {1000 * seconds:.0f} | {1000 * seconds / sizes.process_batch:.1f} |")
    else:
        print(f"| {name} | {MISSING} | |")
    return found


def measure_losses(sizes: Sizes, device: torch.device) -> dict[str, dict[int, LossCost]]:
    """Print the second table; gather -> global batch -> cost."""
    columns = "embeddings, MB | gather, ms | full, ms | full, MB | local, ms | local, MB"
    print(f"\n{CLIPS_PER_RANK} clips per rank, {EMBED_DIM} dimensions, per rank:\n")
    print(f"| global batch | ranks | {columns} |\n|{'--:|' * 8}")
    found = {
        gather: simulate_losses(sizes.global_batches, local=gather == "local", device=device)
        for gather in ("full", "local")
    }
    for batch in sizes.global_batches:
        cells = [f"{2 * 4 * batch * EMBED_DIM / 1e6:.0f}", f"{1000 * time_gather(batch, device):.1f}"]
        for costs in found.values():
            cost = costs.get(batch)
            cells.append(MISSING if cost is None or cost.seconds is None else f"{1000 * cost.seconds:.1f}")
            computed = "" if cost is None or cost.seconds is not None else " (computed)"
            cells.append("" if cost is None else f"{cost.memory / 1e6:,.0f}{computed}")
        print(f"| {batch} | {batch // CLIPS_PER_RANK} | {' | '.join(cells)} |", flush=True)
    return found


def draw(steps: Mapping[str, Mapping[float, float]], losses: Mapping[str, Mapping[int, LossCost]], path: Path) -> None:
    """Milliseconds per clip against each kind of growth, and memory of the loss against the global batch."""
    figure = new_figure(11.0, 6.5, title="Cost of training as work grows")
    panels = figure.subplots(2, 2).flat
    for axes, (name, values) in zip(panels, steps.items(), strict=False):
        style_axes(axes, xlabel=name, ylabel="ms per clip")
        axes.plot(list(values), list(values.values()), color=BLUE, marker="o")
        axes.set_xticks(list(values))
        axes.set_ylim(0, 1.1 * max(values.values()))
    axes = figure.axes[-1]
    style_axes(axes, xlabel="global batch", ylabel="memory of the loss per rank, MB")
    for (gather, costs), color in zip(losses.items(), (ORANGE, BLUE), strict=True):
        sizes, memory = list(costs), [cost.memory / 1e6 for cost in costs.values()]
        axes.plot(sizes, memory, color=color, marker="o", label=f"loss.gather={gather}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend(frameon=False)
    save_png(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--figure", type=Path, help="PNG file to draw")
    parser.add_argument("--small", action="store_true", help="tiny models, to check the script")
    args = parser.parse_args()
    device, sizes = choose_device(args.device), SMALL_SIZES if args.small else Sizes()
    print(f"{describe_machine(device)}, {torch.get_num_threads()} threads\n")
    steps, losses = measure_steps(sizes, device), measure_losses(sizes, device)
    if args.figure:
        draw(steps, losses, args.figure)


if __name__ == "__main__":
    main()
