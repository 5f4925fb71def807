"""Speed and memory of the data input, from file to batch: python experiments/benchmarks/input.py

Prints one Markdown table in six minutes. Recordings are synthetic scenes with broadband noise at 44.1 kHz, of 10
seconds or of 30 seconds, from which a random 10 are used; batches are those of training, padded waveforms at 32 kHz and
token ids. The baseline ("bare"), run alternately in the same process, reads the whole file with soundfile, averages the
channels and resamples with soxr (HQ). The first columns are measured in this process with one thread, set up like a
worker: clips per second of processor time, medians of 15 rounds. The columns of workers are wall time: clips that
arrive in the main process once the workers run, best of three rounds. Ratios transfer to other machines, clips/s do
not.

30 s / 10 s is the relative cost of a clip from the longer file. Measured on two cores of an AMD EPYC (Zen 4), FLAC and
MP3 under load from other processes, WAV and OGG without. Two workers reach 1.6 to 1.95 times the throughput of one,
least with little decoding: passing a batch through shared memory costs more than a millisecond per clip on this
machine, where a new page costs 2 to 3 microseconds, and the main process also uses the two cores. For the same reason,
workers that read the cache are slower than a single process. At 48 kHz, mono WAV reaches 0.88 to 0.92 of bare, its
cache 10 or 11 times that.

| | bare, clips/s | clap | / bare | 30 s / 10 s | 1 worker | 2 | scaling | cached | / clap | cached, 1 | cached, 2 |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
| WAV, mono | 247 | 224 | 0.91 | 0.99 | 183 | 297 | 1.62 | 2860 | 12.7 | 689 | 1132 |
| FLAC, mono | 133 | 126 | 0.95 | 0.99 | 109 | 213 | 1.95 | 2840 | 22.5 | 654 | 1113 |
| OGG, mono | 96 | 91 | 0.95 | 1.00 | 83 | 151 | 1.83 | 2922 | 32.1 | 630 | 1068 |
| MP3, mono | 128 | 121 | 0.95 | 1.06 | 106 | 207 | 1.95 | 3008 | 24.8 | 692 | 1130 |
| WAV, stereo | 84 | 179 | 2.14 | 1.01 | 146 | 246 | 1.68 | 3063 | 17.1 | 703 | 1137 |
| FLAC, stereo | 54 | 85 | 1.57 | 1.01 | 77 | 152 | 1.97 | 2848 | 33.6 | 650 | 1092 |
| OGG, stereo | 41 | 55 | 1.35 | 1.01 | 51 | 99 | 1.93 | 2961 | 53.5 | 614 | 997 |
| MP3, stereo | 51 | 74 | 1.46 | 1.02 | 74 | 132 | 1.78 | 2622 | 35.4 | 564 | 1069 |

Memory of the process and two workers: decoded 884 MB at 1,008 clips, 891 at most, 889 at 10,000; from the cache 891 MB
at 1,008 clips, 900 at most and at 10,000.

`--shards` measures shards: bare is soundfile on bytes in memory. "With start" is wall time with the index of the split
and the text of the batches, for 16 clips; "http" the same from a local server, which is fetched (cold) or was fetched
before (warm). Without other load:

| | bare, clips/s | shards | / bare | with start | http, cold | http, warm |
|---|--:|--:|--:|--:|--:|--:|
| WAV, mono | 297 | 211 | 0.71 | 206 | 126 | 212 |
| FLAC, mono | 151 | 125 | 0.83 | 124 | 93 | 126 |
| OGG, mono | 111 | 98 | 0.89 | 97 | 65 | 96 |
| MP3, mono | 149 | 127 | 0.85 | 125 | 99 | 125 |
| WAV, stereo | 103 | 170 | 1.65 | 169 | 95 | 172 |
| FLAC, stereo | 65 | 84 | 1.29 | 83 | 64 | 84 |
| OGG, stereo | 47 | 58 | 1.23 | 57 | 50 | 57 |
| MP3, stereo | 63 | 83 | 1.31 | 82 | 66 | 81 |

Without making batches, an item of mono WAV takes 4.06 ms from a shard and 4.03 ms from a file, bare takes 3.36 ms.
"""

import argparse
import csv
import functools
import io
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import psutil
import soundfile
import soxr
import torch

from clap.dataset.cache import WaveformCache
from clap.dataset.clips import ClapDataset
from clap.dataset.csv import CSV
from clap.dataset.loader import Collate, keep_freed_memory, make_loader
from clap.dataset.shard_writer import ShardOptions, write_split
from clap.dataset.shards import Shards
from clap.dataset.synthetic import Synthetic
from clap.tokenizer import Tokenizer

FILE_RATE, RATE, WINDOW, LONG = 44_100, 32_000, 10.0, 30.0  # Hz, Hz, seconds, seconds
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}
NUM_FILES, BATCH_SIZE = 16, 16
ROUNDS, WORKER_ROUNDS = 15, 3
REPEATS = {"decoded": 1, "cached": 5, "workers": 12, "cached workers": 60}  # of each file per pass
COLUMNS = ["bare, clips/s", "clap", "/ bare", "30 s / 10 s", "1 worker", "2", "scaling", "cached", "/ clap"]
COLUMNS += ["cached, 1", "cached, 2"]
SHARD_COLUMNS = ["bare, clips/s", "shards", "/ bare", "with start", "http, cold", "http, warm"]
SOAK, SOAK_FILES = 10_000, 100  # number of items, and of different recordings among them


def write_scenes(folder: Path, duration: float, channels: int) -> None:
    """Write the same scenes in each format as FORMAT/NUMBER.FORMAT, each with a metadata.csv."""
    corpus = Synthetic(num_train=NUM_FILES, num_val=1, num_test=1, min_duration=duration, max_duration=duration)
    clips = corpus.clips("train")
    for suffix in FORMATS:
        (folder / suffix).mkdir(parents=True)
        rows = [(f"{i}.{suffix}", clip.captions[0], "train") for i, clip in enumerate(clips)]
        write_metadata(folder / suffix, rows)
    for i, clip in enumerate(clips):
        scene = corpus.load(clip, sample_rate=FILE_RATE, max_duration=None)
        noise = np.random.default_rng(i).standard_normal((len(scene), channels), dtype=np.float32)
        samples = (scene[:, None] + 0.01 * noise).clip(-1, 1)
        for suffix, subtype in FORMATS.items():
            soundfile.write(folder / suffix / f"{i}.{suffix}", samples, FILE_RATE, subtype=subtype)


def write_metadata(folder: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "caption", "split"), *rows])


def open_dataset(folder: Path, *, repeats: int = 1, cache: Path | None = None) -> ClapDataset:
    corpus = CSV(folder, folder / "metadata.csv")
    corpus.cache = None if cache is None else WaveformCache(cache)
    return ClapDataset(corpus, "train", sample_rate=RATE, window=WINDOW, weights=[repeats])


def make_collate(dataset: ClapDataset) -> Collate:
    tokenizer = Tokenizer("train", vocab_size=1000)
    tokenizer.train(dataset.captions)
    tokenizer.cache_captions(dataset.captions)  # like in training
    return Collate(tokenizer)


def read_bare(folder: Path, suffix: str) -> float:
    """Seconds per clip with soundfile and soxr."""
    start = time.process_time()
    for i in range(NUM_FILES):
        waveform, rate = soundfile.read(folder / f"{i}.{suffix}", dtype="float32")
        waveform = waveform.mean(axis=1) if waveform.ndim == 2 else waveform
        soxr.resample(waveform, rate, RATE, quality="HQ")
    return (time.process_time() - start) / NUM_FILES


def read_batches(dataset: ClapDataset, collate: Collate, num_workers: int = 0) -> float:
    """Seconds per clip: processor time of this process, or wall time after the first batches of workers."""
    loader = make_loader(dataset, collate, batch_size=BATCH_SIZE, num_workers=num_workers, shuffle=True)
    batches = iter(loader)
    clock = time.perf_counter if num_workers else time.process_time
    for _ in range(num_workers):
        next(batches)
    start = clock()
    count = sum(len(batch) for batch in batches)
    return (clock() - start) / count


def time_in_turn(calls: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Results of each call over all rounds, with the calls interleaved."""
    turns = [[call() for call in calls] for _ in range(rounds)]
    return [list(found) for found in zip(*turns, strict=True)]


def measure_format(folder: Path, suffix: str, channels: int) -> str:
    """Measure one format and return its row of the table."""
    short, long = folder / "short" / suffix, folder / "long" / suffix
    collate = make_collate(open_dataset(short))
    cache = folder / "cache"
    decoded, far = (open_dataset(path, repeats=REPEATS["decoded"]) for path in (short, long))
    cached = open_dataset(short, repeats=REPEATS["cached"], cache=cache)
    calls = [lambda: read_bare(short, suffix)]
    calls += [lambda data=data: read_batches(data, collate) for data in (decoded, far, cached)]
    time_in_turn(calls, 2)  # warm-up, which also fills the cache
    bare, full, longer, kept = map(statistics.median, time_in_turn(calls, ROUNDS))
    many = open_dataset(short, repeats=REPEATS["workers"])
    cached_many = open_dataset(short, repeats=REPEATS["cached workers"], cache=cache)
    calls = [lambda data=d, n=n: read_batches(data, collate, n) for d in (many, cached_many) for n in (1, 2)]
    one, two, cached_one, cached_two = map(min, time_in_turn(calls, WORKER_ROUNDS))
    speeds = [f"{1 / bare:.0f}", f"{1 / full:.0f}", f"{bare / full:.2f}", f"{longer / full:.2f}"]
    speeds += [f"{1 / one:.0f}", f"{1 / two:.0f}", f"{one / two:.2f}", f"{1 / kept:.0f}", f"{full / kept:.1f}"]
    speeds += [f"{1 / cached_one:.0f}", f"{1 / cached_two:.0f}"]
    name = f"{suffix.upper()}, {'mono' if channels == 1 else 'stereo'}"
    return f"| {name} | {' | '.join(speeds)} |"


def read_bare_bytes(contents: Sequence[bytes]) -> float:
    """Seconds per clip with soundfile on bytes in memory, and soxr."""
    start = time.process_time()
    for content in contents:
        waveform, rate = soundfile.read(io.BytesIO(content), dtype="float32")
        waveform = waveform.mean(axis=1) if waveform.ndim == 2 else waveform
        soxr.resample(waveform, rate, RATE, quality="HQ")
    return (time.process_time() - start) / len(contents)


def read_shards(places: Sequence[str | Path], collate: Collate, cache: Path, *, wall: bool) -> float:
    """Seconds per clip from shards, in processor time, or in wall time with the index and all that is fetched."""
    start = time.perf_counter()
    dataset = ClapDataset(Shards(train=places, shard_cache=cache), "train", sample_rate=RATE, window=WINDOW)
    seconds = read_batches(dataset, collate)
    return (time.perf_counter() - start) / len(dataset) if wall else seconds


def measure_shards(folder: Path, suffix: str, channels: int) -> str:
    """Measure shards of one format, local and over http, and return their row of the table."""
    files, shards = folder / "short" / suffix, folder / "shards" / suffix
    corpus = CSV(files, files / "metadata.csv")
    write_split(corpus, corpus.clips("train"), shards, ShardOptions(max_clips=NUM_FILES // 4), shuffle=True)
    places, collate = sorted(shards.glob("*.tar")), make_collate(open_dataset(files))
    contents = [path.read_bytes() for path in sorted(files.glob(f"*.{suffix}"))]
    handler = functools.partial(QuietHandler, directory=shards)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = [f"http://127.0.0.1:{server.server_port}/{path.name}" for path in places]
        colds = (folder / "cold" / f"{suffix}{number}" for number in itertools.count())
        calls = [
            lambda: read_bare_bytes(contents),
            lambda: read_shards(places, collate, folder / "warm", wall=False),
            lambda: read_shards(places, collate, folder / "warm", wall=True),
            lambda: read_shards(remote, collate, next(colds), wall=True),
            lambda: read_shards(remote, collate, folder / "warm", wall=True),
        ]
        time_in_turn(calls, 2)
        bare, local, *walls = map(statistics.median, time_in_turn(calls, ROUNDS))
        server.shutdown()
    speeds = [f"{1 / bare:.0f}", f"{1 / local:.0f}", f"{bare / local:.2f}", *(f"{1 / wall:.0f}" for wall in walls)]
    return f"| {suffix.upper()}, {'mono' if channels == 1 else 'stereo'} | {' | '.join(speeds)} |"


class QuietHandler(SimpleHTTPRequestHandler):
    """A server of files without a log."""

    def log_message(self, *arguments: object) -> None:
        pass


def soak(folder: Path, *, cached: bool) -> str:
    """Memory while two workers read 10,000 clips with different captions, measured every 1,000 clips."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for i in range(SOAK):
        path = folder / f"{i}.wav"
        if i < SOAK_FILES:
            soundfile.write(path, 0.1 * generator.standard_normal(FILE_RATE), FILE_RATE)
        else:
            os.link(folder / f"{i % SOAK_FILES}.wav", path)
        rows.append((path.name, f"noise number {i} hisses for a second", "train"))
    write_metadata(folder, rows)
    dataset = open_dataset(folder, cache=folder / "cache" if cached else None)
    collate, found, clips = make_collate(dataset), {}, 0
    for batch in make_loader(dataset, collate, batch_size=BATCH_SIZE, num_workers=2, shuffle=True):
        clips += len(batch)
        if clips // 1000 > len(found):
            found[clips] = measure_memory()
    first, *_, last = found.items()
    name, most = "from the cache" if cached else "decoded", max(found.values())
    return f"{name} {first[1]:.0f} MB at {first[0]:,} clips, {most:.0f} at most, {last[1]:.0f} at {last[0]:,}"


def measure_memory() -> float:
    """Memory of this process and its workers in MB, with shared pages counted once (PSS)."""
    process = psutil.Process()
    return sum(one.memory_full_info().pss for one in (process, *process.children(recursive=True))) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--shards", action="store_true", help="the table of shards only")
    args = parser.parse_args()
    formats = args.formats
    torch.set_num_threads(1)
    keep_freed_memory()
    measure = measure_shards if args.shards else measure_format
    columns = SHARD_COLUMNS if args.shards else COLUMNS
    print(f"| | {' | '.join(columns)} |")
    print("|---|" + "--:|" * len(columns))
    with tempfile.TemporaryDirectory() as name:
        for channels in (1, 2):
            folder = Path(name, str(channels))
            write_scenes(folder / "short", WINDOW, channels)
            write_scenes(folder / "long", LONG, channels)
            for suffix in formats:
                print(measure(folder, suffix, channels), flush=True)
        soaks = [] if args.shards else [soak(Path(name, str(cached)), cached=cached) for cached in (False, True)]
    if soaks:
        print(f"\nMemory of the process and two workers: {'; '.join(soaks)}.")


if __name__ == "__main__":
    main()
