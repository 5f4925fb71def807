"""What the page answers: a text finds sounds of an index, a sound gets scores for labels over time."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

from clap.demo import cards
from clap.demo.cards import FoundSound
from clap.demo.excerpt import write_excerpt
from clap.model import Clap
from clap.prompts import TEMPLATES, fill_templates, find_problem
from clap.sound_index.segments import score_over_time
from clap.sound_index.sound_index import Match, SoundIndex
from clap.waveform import AudioError, read_header

MAX_TEXT = 1000  # characters of a text or label
MAX_LABELS = 100
EXAMPLES = {"text": "a dog barks in the rain", "label": "dog", "prompt": TEMPLATES[0]}
LONGEST_SOUND = 7200.0  # seconds of a recording that is scored
MAX_WINDOWS = 720  # of a recording, one every 10 seconds of two hours; of shorter ones four windows overlap
LONGEST_EXCERPT = 60.0  # seconds of a result that can be played
CONTEXT = 5.0  # seconds before and after a segment of a longer recording
SILENCE = 1e-4  # largest sample, -80 dB of full scale


def explain_errors(answer: Callable[..., str]) -> Callable[..., str]:
    """Show invalid input as a message on the page, which stays usable."""

    @functools.wraps(answer)
    def explained(*args: object) -> str:
        try:
            return answer(*args)
        except (ValueError, OSError) as error:
            return cards.message(str(error))

    return explained


class Answers:
    """The callbacks of the page; each returns HTML and may be called from any thread.

    Args:
        folder: where files of answers are written, all of which the page serves.
    """

    def __init__(self, clap: Clap, index: SoundIndex | None, folder: Path) -> None:
        self.clap, self.index, self.folder = clap, index, folder

    @explain_errors
    def find_sounds(self, text: str | None, top: float) -> str:
        """The `top` sounds of the index closest to a text."""
        text = check_text(text, "text")
        if self.index is None:
            raise ValueError("there are no sounds to search; start the demo with --index DIR or --folder FOLDER")
        (embedding,) = self.clap.get_text_embeddings([text])
        found = [self.cut(match) for match in self.index.search(embedding.cpu(), top=int(top))]
        return cards.show_sounds(found, text, self.note_length(text))

    def note_length(self, text: str) -> list[str]:
        """A note if the tokenizer may cut the text."""
        tokenizer = self.clap.tokenizer
        _, mask = tokenizer([text])
        limit = f"the model reads at most {tokenizer.max_length} tokens; the end of this text is not used"
        return [limit] if int(mask.sum()) >= tokenizer.max_length else []

    def cut(self, match: Match) -> FoundSound:
        """A match with an excerpt: the whole recording if it is short, else the segment and seconds around it."""
        name = os.path.relpath(match.path, self.index.record.folder)
        excerpt, problem, start, end = None, "", 0.0, LONGEST_EXCERPT
        try:
            if read_header(match.path).duration > LONGEST_EXCERPT:
                start = max(0.0, match.start - CONTEXT)
                end = min(match.end + CONTEXT, start + LONGEST_EXCERPT)
            excerpt = write_excerpt(match.path, self.folder, start=start, end=end)
        except AudioError as error:
            problem = str(error).replace(match.path, name)
        return FoundSound(name, match.score, match.start, match.end, excerpt, problem)

    @explain_errors
    def score_sound(self, upload: str | None, recorded: str | None, labels: str | None, prompt: str | None) -> str:
        """Scores of labels for an uploaded or recorded sound, over time if it is longer than the model's window."""
        path = upload or recorded
        if path is None:
            raise ValueError("choose a recording, or record one, then press Score")
        names, notes = split_labels(labels)
        prompt = check_text(prompt, "prompt")
        if "{}" not in prompt:
            raise ValueError(f"the prompt is {prompt!r}; write {{}} where the label belongs")
        name = Path(path).name
        try:
            duration = read_header(path).duration
            if duration > LONGEST_SOUND:
                raise AudioError(
                    f"{name}: {cards.clock(duration)} long, the page scores up to {cards.clock(LONGEST_SOUND)}; cut "
                    "it, or use `python -m clap segments`"
                )
            excerpt = write_excerpt(path, self.folder)
            if excerpt.peak < SILENCE:
                raise AudioError(f"{name}: silent, its largest sample is {excerpt.peak:.2g} of 1; choose another sound")
            window = self.clap.audio_encoder.window
            hop = min(window, max(window / 4, duration / MAX_WINDOWS))
            found = score_over_time(self.clap, path, fill_templates(names, [prompt]), hop=hop)
        except AudioError as error:
            raise AudioError(str(error).replace(str(path), name)) from None  # not the folder of uploads
        return cards.show_scores(name, excerpt, names, found.times, found.scores, notes)


def check_text(text: str | None, what: str) -> str:
    """The text without spaces around it.

    Raises:
        ValueError: empty, too long, or a text that cannot be tokenized.
    """
    text = (text or "").strip()
    if not text:
        raise ValueError(f"the {what} is empty; write one, such as: {EXAMPLES[what]}")
    if len(text) > MAX_TEXT:
        raise ValueError(f"the {what} has {len(text):,} characters, at most {MAX_TEXT:,} are allowed; shorten it")
    if problem := find_problem(text):
        raise ValueError(f"the {what} {problem}")
    return text


def split_labels(text: str | None) -> tuple[list[str], list[str]]:
    """Labels, one a line, or separated by commas on a single line; and notes on repeated ones, which are dropped."""
    text = (text or "").strip()
    given = [label.strip() for label in text.split("\n" if "\n" in text else ",")]
    labels = list(dict.fromkeys(label for label in given if label))
    if not labels:
        raise ValueError("no labels; write one or more, one a line")
    if len(labels) > MAX_LABELS:
        raise ValueError(f"{len(labels):,} labels, at most {MAX_LABELS} are allowed; remove some")
    repeated = sorted({label for label in labels if given.count(label) > 1})
    return [check_text(label, "label") for label in labels], [
        f"“{label}” is given more than once and scored once" for label in repeated
    ]
