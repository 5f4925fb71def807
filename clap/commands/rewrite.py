"""`python -m clap rewrite dataset=NAME ... --model NAME --output FILE`: rewrite captions by a language model.

Ghosh et al. 2024 (ReCLAP) train on captions that describe each sound by its properties, Wu et al. 2023, section 3.3, on
captions that a T5 writes from keywords. `dataset.captions=rewritten` reads the file.
"""

import argparse
import hashlib
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from clap.atomic import name_file
from clap.commands import output
from clap.commands.check import compose_datasets
from clap.config.values import CHOICES, shell_override
from clap.corpus import Clip
from clap.dataset.registry import open_corpus
from clap.dataset.rewritings import SETTINGS, read_entries
from clap.progress import progress_bar
from clap.prompts import find_problem

if TYPE_CHECKING:  # imports torch
    from clap.commands.rewriter import Rewriter

PROMPTS = {  # what is rewritten -> prompt, with {} for it
    "captions": "Rewrite this caption of an audio recording. Name the same sounds in the same order, and describe each "
    "by how it sounds: its pitch, loudness, timbre and rhythm. Answer with one sentence only.\nCaption: {}",
    "keywords": "Write a caption of an audio recording with these sounds, in one sentence and nothing else: {}",
}
LONGEST_LINE = 2**24  # bytes; a torn line is shorter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m clap rewrite`."""
    parser.add_argument(
        "overrides", nargs="+", help="dataset overrides as for train.py: dataset=clotho dataset.root=data/clotho"
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME_OR_FOLDER",
        help="encoder-decoder or decoder of the transformers library",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="JSON Lines file; the same command resumes it"
    )
    parser.add_argument(
        "--from",
        dest="kind",
        choices=tuple(PROMPTS),
        default="captions",
        help="rewrite each caption, or write captions from the keywords or labels of each clip (default: %(default)s)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="with {} for the caption or keywords (default: by --from)")
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="text file with the prompt")
    parser.add_argument("--split", choices=CHOICES["split"], default="train", help="default: %(default)s")
    parser.add_argument("--count", type=int, default=4, metavar="N", help="texts for each (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=80, metavar="N", help="of a text (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the most likely text (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="prompts (default: %(default)s)")
    parser.add_argument("--device", choices=CHOICES["device"], default="auto", help="default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Write or resume the file, print what it has, and the command that trains on it."""
    prompt = check_arguments(args)
    inputs = list_inputs(compose_datasets(args.overrides)[0], split=args.split, kind=args.kind)

    from clap.commands.rewriter import Rewriter  # imports torch and transformers, so after all checks

    options = {"count": args.count, "max_new_tokens": args.max_new_tokens, "temperature": args.temperature}
    rewriter = Rewriter(args.model, device=args.device, **options)
    settings = {
        "model": args.model,
        "revision": rewriter.revision,
        "from": args.kind,
        "prompt": prompt,
        **options,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "split": args.split,
        "inputs": f"{len(inputs)} {args.kind}, sha256 {digest_inputs(inputs)}",
    }
    try:
        write_file(args.output, rewriter, inputs, settings)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        raise
    print(summarize(args.output))
    print(
        "python train.py",
        *map(shlex.quote, args.overrides),
        "dataset.captions=rewritten",
        shell_override("dataset.rewritings", args.output),
    )


def check_arguments(args: argparse.Namespace) -> str:
    """Reject wrong arguments before a file is read; returns the prompt.

    Raises:
        ValueError: a number is out of range, or the prompt has no {}.
        OSError: a file cannot be read or written.
    """
    for name in ("count", "max_new_tokens", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)} is too small; give 1 or more")
    if args.seed < 0 or not 0 <= args.temperature < float("inf"):
        raise ValueError(f"--seed {args.seed} and --temperature {args.temperature} must be 0 or more")
    if args.count > 1 and args.temperature == 0:
        raise ValueError(f"--temperature 0 writes one text {args.count} times; set --count 1, or a higher temperature")
    if output.choose_format(args.output, None) != "jsonl":
        raise ValueError(f"--output {args.output}: rewritings are JSON Lines; change the suffix to .jsonl")
    if args.prompt is not None and args.prompt_file is not None:
        raise ValueError("--prompt and --prompt-file are both given; remove one")
    prompt = args.prompt if args.prompt_file is None else args.prompt_file.read_text(encoding="utf-8-sig").strip()
    prompt = PROMPTS[args.kind] if prompt is None else prompt
    if "{}" not in prompt:
        raise ValueError(f"prompt {prompt!r} needs {{}} for the {args.kind}; set --prompt")
    return prompt


def list_inputs(config: dict[str, Any], *, split: str, kind: str) -> list[dict[str, Any]]:
    """What is rewritten, each once: {"caption": text}, or {"id": of a clip, "keywords": texts}.

    Raises:
        ValueError: there is none, or keywords of several corpora, whose ids may be equal.
    """
    corpus = open_corpus(config)
    if kind == "keywords" and len(corpus.parts) > 1:
        raise ValueError(f"--from keywords names clips by id, which {corpus.name} may have twice; give one corpus")
    found = [part.clips(split)[: config.get("max_clips")] for part in corpus.parts]
    inputs = list(find_captions(found) if kind == "captions" else find_keywords(found))
    if not inputs:
        raise ValueError(f"the {split} split of {corpus.name} has no {kind}; choose another --split or --from")
    return inputs


def find_captions(corpora: Iterable[Sequence[Clip]]) -> Iterator[dict[str, Any]]:
    """Each caption once."""
    captions = dict.fromkeys(caption for clips in corpora for clip in clips for caption in clip.captions)
    return ({"caption": caption} for caption in captions)


def find_keywords(corpora: Iterable[Sequence[Clip]]) -> Iterator[dict[str, Any]]:
    """The keywords of each clip, or else its labels; clips without either are skipped."""
    for clip in (clip for clips in corpora for clip in clips):
        if keywords := clip.keywords or clip.all_labels:
            yield {"id": clip.id, "keywords": list(keywords)}


def digest_inputs(inputs: Sequence[dict[str, Any]]) -> str:
    """Digest of all inputs in their order, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for item in inputs:
        digest.update(json.dumps(item).encode() + b"\n")
    return digest.hexdigest()[:16]


def write_file(path: Path, rewriter: "Rewriter", inputs: Sequence[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Write a line for each input, or those that a file does not have yet.

    Args:
        settings: of the first line; their prompt, seed and batch_size are used.

    Raises:
        ValueError: the file was written with other settings, or by another program.
        OSError: the file cannot be written, or another process writes it.
    """
    with lock_output(path), name_file(path, kept="; run again to resume"):
        done = prepare_output(path, settings)
        bar = progress_bar(total=len(inputs), initial=done, unit=settings["from"][:-1])
        with path.open("ab") as file, bar:
            for lines in write_batches(rewriter, inputs, settings, done=done):
                file.write(output.to_json(lines, "jsonl"))
                file.flush()
                bar.update(len(lines))


def lock_output(path: Path) -> FileLock:
    """The lock of an output file.

    Raises:
        BlockingIOError: another process writes the file.
    """
    try:
        return FileLock(path.with_name(f".{path.name}.lock")).acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"--output {path} is being written by another process; wait for it or stop it") from None


def prepare_output(path: Path, settings: dict[str, Any]) -> int:
    """Begin a file with its settings, or check those of a file that is resumed; returns the inputs that it has.

    A line that a kill has cut off is removed.

    Raises:
        ValueError: the file was written with other settings, or by another program.
    """
    if not path.exists() or remove_torn_line(path) == 0:
        path.write_bytes(output.to_json([{SETTINGS: settings}], "jsonl"))
        return 0
    with path.open("rb") as file:
        first, done, before = file.readline(), sum(1 for _ in file), None
    with suppress(ValueError):
        before = json.loads(first)
    if not isinstance(before, dict) or not isinstance(before.get(SETTINGS), dict):
        raise ValueError(f"--output {path} is not a file of this command; give another")
    before = before[SETTINGS]
    if changed := [key for key in settings if before.get(key) != settings[key]]:
        old, new = (", ".join(f"{key}={values.get(key)!r}" for key in changed) for values in (before, settings))
        raise ValueError(f"--output {path} was begun with {old}, now it is {new}; restore this, or give another file")
    return done


def remove_torn_line(path: Path) -> int:
    """Cut a file after its last complete line; returns its size."""
    with path.open("r+b") as file:
        start = max(0, path.stat().st_size - LONGEST_LINE)
        file.seek(start)
        return file.truncate(start + file.read().rfind(b"\n") + 1)


def write_batches(
    rewriter: "Rewriter", inputs: Sequence[dict[str, Any]], settings: dict[str, Any], *, done: int
) -> Iterator[list[dict[str, Any]]]:
    """The lines of each batch that a file does not have; a batch of which it has a part is written again."""
    size, prompt = settings["batch_size"], settings["prompt"]
    for first in range(0, len(inputs), size):
        if first + size <= done or done == len(inputs):
            continue
        batch = inputs[first : first + size]
        prompts = [prompt.replace("{}", item.get("caption") or ", ".join(item["keywords"])) for item in batch]
        texts = rewriter.write_texts(prompts, seed=(settings["seed"], first // size))
        lines = [item | choose_texts(own, item.get("caption")) for item, own in zip(batch, texts, strict=True)]
        yield lines[max(0, done - first) :]


def choose_texts(texts: Sequence[str | None], caption: str | None) -> dict[str, Any]:
    """The texts that are of use, and numbers of the others: too_long, empty, or equal to the caption or one before.

    Args:
        texts: of a model; None for one that was cut off.
        caption: that they rewrite, if any.
    """
    kept, known, dropped = [], set() if caption is None else {normalize(caption)}, Counter()
    for text in texts:
        cleaned = None if text is None else " ".join(text.split()).strip("\"“”' ")
        if cleaned is None:
            dropped["too_long"] += 1
        elif find_problem(cleaned) is not None:
            dropped["empty"] += 1
        elif normalize(cleaned) in known:
            dropped["equal"] += 1
        else:
            known.add(normalize(cleaned))
            kept.append(cleaned)
    return {"rewritings": kept} | ({"dropped": dict(dropped)} if dropped else {})


def normalize(text: str) -> str:
    """A text by which equal ones are found: without case, and without a full stop."""
    return text.casefold().strip().rstrip(".")


def summarize(path: Path) -> str:
    """What a file has, and what was dropped."""
    lines, texts, without, dropped = 0, 0, 0, Counter()
    for _, entry in read_entries(path):
        lines, texts, without = lines + 1, texts + len(entry["rewritings"]), without + (not entry["rewritings"])
        dropped.update(entry.get("dropped", {}))
    reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(dropped.items())) or "none"
    summary = f"{path}: {texts} rewritings in {lines} lines, {without} lines without any; dropped texts: {reasons}"
    if 2 * dropped["too_long"] > texts + dropped.total():
        summary += "\nmost texts are too long; give a larger --max-new-tokens and another --output"
    return summary
