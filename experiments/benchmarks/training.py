"""Speed and memory of a training step beside transformers' ClapModel: python experiments/benchmarks/training.py

HTS-AT tiny and RoBERTa base, as laion/clap-htsat-unfused, with the same random weights in both models, on the same
ten-second waveforms. A step is forward, loss, backward and a fused AdamW. The steps of a table run alternately in one
process; its times are medians, its memory is the peak during a step above what the process holds between steps. End to
end includes each model's own feature extraction: on the device here, by ClapFeatureExtractor on the CPU there. Captions
have 16 tokens; 77 is the padding with which LAION-CLAP is trained. Ratios transfer to other machines, milliseconds do
not. FLOPs are those of matrix products, convolutions and attention; their share is that of the rate of square matrix
products, measured between the steps in the same precision.

The second table has the trainer's own step with one setting changed. --small is a quick check of the script with tiny
models, and --only one part. A GPU adds bf16, the largest batch, `trainer.tf32` and `trainer.compile`.

Ratios to transformers, and the share of the GEMM rate that the model alone reaches:

| machine | precision | batch | end to end | end to end, 77 tokens | model alone | share of GEMM rate |
|---|---|--:|--:|--:|--:|--:|
| two cores | fp32 | 8 | 1.18 | 1.70 | 1.34 | 37 % |
| two cores | fp32 | 16 | 1.20 | 1.56 | 1.16 | 38 % |
| H200 | fp32 | 8 | 3.98 | 3.98 | 1.23 | 16 % |
| H200 | fp32 | 64 | 8.76 | 9.08 | 1.03 | 49 % |
| H200 | bf16 | 8 | 3.46 | 3.28 | 1.23 | 1 % |
| H200 | bf16 | 64 | 13.47 | 13.43 | 1.16 | 5 % |

End to end, ClapFeatureExtractor computes on the CPU of the H200's host. That host launches kernels slowly: a step of 64
clips in bf16 has 3,000 kernels and takes 81 ms, of which the GPU computes for 65. The text encoder alone, 77 tokens,
bf16, reaches 25 % of the GEMM rate at 256 captions, 34 % at 1,024 and 37 % at 4,096.

Speed and memory of a step with a setting, relative to the step without it:

| setting | two cores, batch 8 | H200, batch 64 in bf16 |
|---|--:|--:|
| fused optimizer | 1.21 | 1.42 |
| trainer.precision=bf16 | 2.12, 0.80 | 1.68, 0.73 |
| trainer.tf32=true, in float32 | | 1.63 |
| trainer.channels_last=true, Cnn14 | 0.97 | 1.49 |
| trainer.fused_attention=true | 0.95, 0.95 | 1.17, 0.79 |
| trainer.activation_checkpointing=true | 0.78, 0.86 | 0.55, 0.35 |
| trainer.micro_batch_size=half the batch | 0.81, 0.93 | 0.39, 0.61 |
| trainer.compile=true, after 55 s of compilation | | 1.01 |

The two cores have AMX, and other work on their host changes these figures by a tenth or more. The largest batch of the
H200 in bf16 is 1,024 clips, and 8,192 (the most that is tried) with trainer.micro_batch_size=64. Trainings wait for
data from the cache for 0.3 % of the time on the two cores, and less than 0.1 % on the H200 with eight workers.
"""

import argparse
import copy
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from clap.config.compose import compose_config
from clap.dataset.loader import closing_workers
from clap.device import choose_device, describe_machine
from clap.model import Clap
from clap.training.cost import count_flops, synchronize
from clap.training.trainer_settings import TrainerSettings
from experiments.benchmarks.steps import (
    FULL,
    LAION_TOKENS,
    MISSING,
    NUM_TOKENS,
    SMALL,
    Models,
    build_models,
    load_batch,
    make_trainer,
    open_scenes,
    repeat_rows,
    step_memory,
    time_in_turn,
    time_with_rate,
    train_step,
)

CNN14, SMALL_CNN14 = "audio_encoder=cnn14", "audio_encoder=cnn14_nano"  # with a small text encoder
LARGEST = 8192
LARGE_TEXTS = 1024  # captions with which a GPU has enough to do
WAIT_STEPS = 8  # of which the first is not counted
COLUMNS = "clap, ms | transformers, ms | ratio | share of GEMM rate | GEMM, GFLOP/s | clap, MB | transformers, MB"
SWITCH_COLUMNS = "without, ms | with, ms | speed-up | without, MB | with, MB"


def compare_models(models: Models, repeats: int) -> None:
    """Print the rows of one batch size and precision."""
    own, reference = models.own_steps(), models.reference_steps()
    own = {f"clap, {name}": step for name, step in own.items()}
    calls = {**own, **{f"transformers, {name}": step for name, step in reference.items()}}
    seconds, rate = time_with_rate(calls, repeats, device=models.device, precision=models.precision)
    memory = {name: step_memory(step, step.optimizer, models.device) for name, step in calls.items()}
    for row, versus in (
        ("end to end", "end to end"),
        ("end to end", "end to end, 77 tokens"),
        ("model alone", "model alone"),
    ):
        mine, other = f"clap, {row}", f"transformers, {versus}"
        share = count_flops(calls[mine]) / seconds[mine] / rate
        print(
            f"| {len(models.batch)} | {models.precision} | {versus} | {1000 * seconds[mine]:.0f} | "
            f"{1000 * seconds[other]:.0f} | {seconds[other] / seconds[mine]:.2f} | {share:.0%} | {rate / 1e9:,.0f} | "
            f"{memory[mine] / 1e6:,.0f} | {memory[other] / 1e6:,.0f} |",
            flush=True,
        )


def compare_text_tower(models: Models, size: int, repeats: int, *, num_tokens: int = NUM_TOKENS) -> None:
    """Print the text encoder's own row, forward and backward."""
    encoder = models.clap.text_encoder
    ids = torch.randint(5, 300, (size, num_tokens), device=models.device)
    mask = torch.ones_like(ids, dtype=torch.bool)

    def step() -> None:
        with models.autocast():
            features = encoder(ids, mask)
        features.float().sum().backward()

    seconds, rate = time_with_rate({"text": step}, repeats, device=models.device, precision=models.precision)
    share = count_flops(step) / seconds["text"] / rate
    name = f"text encoder, forward and backward, {num_tokens} tokens"
    row = f"| {size} | {models.precision} | {name} | {1000 * seconds['text']:.0f} | | |"
    print(f"{row} {share:.0%} | {rate / 1e9:,.0f} | | |", flush=True)


@dataclass
class Switch:
    """A setting whose effect is measured: options of the trainer, or the optimizer's `fused`.

    Args:
        settings, without: options of the trainer with the setting, and without it.
        fused: the optimizer is fused with the setting, and not without it.
        cnn14: of a model with Cnn14.
        needs_gpu: on a CPU it has no effect, or takes minutes to start.
        float32: measured in float32 on a GPU too, where the others are measured in bf16.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    without: dict[str, Any] = field(default_factory=dict)
    fused: bool = False
    cnn14: bool = False
    needs_gpu: bool = False
    float32: bool = False


def list_switches(batch_size: int) -> list[Switch]:
    return [
        Switch("fused optimizer", fused=True),
        Switch("trainer.precision=bf16", {"precision": "bf16"}, float32=True),
        Switch("trainer.tf32=true", {"tf32": True}, needs_gpu=True, float32=True),
        Switch("trainer.channels_last=true, Cnn14", {"channels_last": True}, {"channels_last": False}, cnn14=True),
        Switch("trainer.fused_attention=true", {"fused_attention": True}, {"fused_attention": False}),
        Switch("trainer.activation_checkpointing=true", {"activation_checkpointing": True}),
        Switch(f"trainer.micro_batch_size={batch_size // 2}", {"micro_batch_size": batch_size // 2}),
        Switch("trainer.compile=true", {"compile": True}, needs_gpu=True),
    ]


def compare_switch(switch: Switch, clap: Clap, batch_size: int, repeats: int) -> str:
    """The row of a switch: the trainer's step with it and without it, alternately."""
    unknown = switch.settings.keys() - {option.name for option in fields(TrainerSettings)}
    if unknown or (switch.needs_gpu and clap.device.type == "cpu"):
        return f"| {batch_size} | {switch.name} | {MISSING} | | | | |"
    loader = open_scenes(clap, batch_size)
    batch = load_batch(loader)
    base = {} if switch.float32 or clap.device.type == "cpu" else {"precision": "bf16"}
    off = make_trainer(copy.deepcopy(clap), loader, fused=not switch.fused, **base, **switch.without)
    on = make_trainer(copy.deepcopy(clap), loader, **base, **switch.settings)
    calls = {"off": lambda: train_step(off, batch), "on": lambda: train_step(on, batch)}
    seconds = time_in_turn(calls, repeats, device=clap.device)
    memory = [step_memory(calls[name], trainer.optimizer, clap.device) for name, trainer in (("off", off), ("on", on))]
    times = f"{1000 * seconds['off']:.0f} | {1000 * seconds['on']:.0f} | {seconds['off'] / seconds['on']:.2f}"
    return f"| {batch_size} | {switch.name} | {times} | {memory[0] / 1e6:,.0f} | {memory[1] / 1e6:,.0f} |"


def measure_waiting(clap: Clap, batch_size: int, *, num_workers: int, cache: Path) -> str:
    """Share of a training's time in which it waits for data from the cache, after an epoch that fills it."""
    loader = open_scenes(clap, batch_size, num_batches=WAIT_STEPS, num_workers=num_workers, cache=cache)
    settings = {"precision": "bf16"} if clap.device.type == "cuda" else {}
    trainer, waited, start = make_trainer(clap, loader, **settings), 0.0, 0.0
    with closing_workers(loader):
        for _ in loader:
            pass
        batches = iter(loader)
        for step in range(WAIT_STEPS):
            if step == 1:  # the first waits for the workers to start
                waited, start = 0.0, time.perf_counter()
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            train_step(trainer, batch)
            synchronize(clap.device)
    share = waited / (time.perf_counter() - start)
    return f"{share:.1%} of the time at batch {batch_size} with {num_workers} workers"


def find_largest_batch(clap: Clap, **settings: Any) -> int:
    """The largest power of two, up to LARGEST, whose training step fits into the memory of the GPU."""
    loader = open_scenes(clap, 4)
    batch, size = load_batch(loader), 16
    with suppress(torch.OutOfMemoryError):
        while size < LARGEST:
            train_step(make_trainer(clap, loader, **settings), repeat_rows(batch, 2 * size))
            size *= 2
    return size


def compare_all(models: Models, batch_sizes: list[int], repeats: int) -> None:
    """Print the table beside ClapModel: in float32, on a GPU also in bf16."""
    print(f"| batch | precision | step | {COLUMNS} |\n|--:|---|---|{'--:|' * 7}")
    precisions = ["fp32", "bf16"] if models.device.type == "cuda" else ["fp32"]
    for models.precision in precisions:
        for size in batch_sizes:
            models.batch = repeat_rows(load_batch(open_scenes(models.clap, min(size, 16))), size)
            compare_models(models, repeats)
            compare_text_tower(models, size, repeats)
    if models.device.type == "cuda":
        compare_text_tower(models, LARGE_TEXTS, repeats, num_tokens=LAION_TOKENS)


def compare_switches(clap: Clap, cnn14: Clap, batch_size: int, repeats: int) -> None:
    """Print the table of settings."""
    print(f"\n| batch | setting | {SWITCH_COLUMNS} |\n|--:|---|{'--:|' * 5}")
    for switch in list_switches(batch_size):
        print(compare_switch(switch, cnn14 if switch.cnn14 else clap, batch_size, repeats), flush=True)


def measure_limits(clap: Clap, batch_size: int, num_workers: int) -> None:
    """Print the share of waiting for data, and on a GPU the largest batches."""
    with tempfile.TemporaryDirectory() as folder:
        waiting = measure_waiting(clap, batch_size, num_workers=num_workers, cache=Path(folder))
    print(f"\nWaiting for data from the cache: {waiting}.")
    whole = cached = MISSING
    if clap.device.type == "cuda":
        whole = find_largest_batch(clap, precision="bf16")
        cached = find_largest_batch(clap, precision="bf16", micro_batch_size=64)
    print(f"Largest batch in bf16: {whole}; with trainer.micro_batch_size=64: {cached}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", help="batch sizes (default: 8 16, on a GPU 8 16 64)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each step (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="of the loader (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny models, to check the script")
    parser.add_argument("--only", choices=("models", "switches", "limits"), help="one part of the tables")
    args = parser.parse_args()
    device = choose_device(args.device)
    batch_sizes = args.batch or ([8, 16, 64] if device.type == "cuda" else [8, 16])
    models = build_models(compose_config(list(SMALL if args.small else FULL)), device=device)
    models.check()
    print(f"{describe_machine(device)}, {torch.get_num_threads()} threads\n")
    if args.only in (None, "models"):
        compare_all(models, batch_sizes, args.repeats)
    clap = models.clap
    del models  # ClapModel and both optimizers
    size = batch_sizes[-1] if device.type == "cuda" else batch_sizes[0]
    if args.only in (None, "switches"):
        cnn14 = Clap.from_config(compose_config([SMALL_CNN14 if args.small else CNN14])).to(device)
        compare_switches(clap, cnn14, size, -(-args.repeats // 2))
    if args.only in (None, "limits"):
        measure_limits(clap, size, args.workers)


if __name__ == "__main__":
    main()
