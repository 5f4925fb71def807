"""Texts that cannot be captions are named by their position."""

import argparse
import inspect

import numpy as np
import pytest

from clap.commands import classify
from clap.corpus import Clip, Corpus
from clap.dataset.clips import ClapDataset
from clap.dataset.keywords import fill_keyword_templates
from clap.evaluation.zero_shot import ZeroShot
from clap.model import Clap
from clap.prompts import TEMPLATES, check_prompts, check_templates, check_texts, fill_templates
from clap.tokenizer import Tokenizer
from clap.tracking.serve import DEFAULT_PARAMS

WRONG = {
    "None": (None, "is None, of type NoneType"),
    "nan of pandas": (float("nan"), "is nan, of type float"),
    "nan of numpy": (np.float64("nan"), r"is .*nan.*, of type float64"),
    "number": (3, "is 3, of type int"),
    "bytes": (b"rain", "is b'rain', of type bytes"),
    "list": (["rain"], r"is \['rain'\], of type list"),
    "empty": ("", "is blank: ''"),
    "spaces": (" \u2028\x85\t", "is blank"),
    "surrogate": ("a \ud83d", r"contains '\\ud83d', half of a surrogate pair"),
    "bytes of a file name": ("caf\udce9", r"contains '\\udce9', half of a surrogate pair"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_wrong_text_is_named_by_position(text: object, message: str):
    tokenizer = Tokenizer("train", vocab_size=300)
    with pytest.raises(ValueError, match=f"^caption 1 of 2 {message}"):
        tokenizer.train(["a dog", text])
    tokenizer.train(["a dog barks"])
    for what, call in {
        "text": lambda texts: check_texts(texts, "text"),
        "caption": tokenizer,
        "label": lambda texts: check_prompts(texts, "{}"),
        "template": lambda texts: check_templates(texts, what="label", key="x"),
    }.items():
        with pytest.raises(ValueError, match=f"^{what} 1 of 2 {message}"):
            call(["{} a dog", text])
    with pytest.raises(ValueError, match=f"^label 1 of 2 {message}"):
        fill_templates(["a dog", text], ["{}"])
    with pytest.raises(ValueError, match=f"^caption 1 of 2 of clip 'a.wav' {message}"):
        Clip("a.wav", ("a dog", text))
    with pytest.raises(ValueError, match=f"^keyword 0 of 1 of clip 'a.wav' {message}"):
        Clip("a.wav", ("a dog",), keywords=(text,))


def test_one_list_of_templates_is_the_default_of_python_commands_and_server():
    parser = argparse.ArgumentParser()
    classify.add_arguments(parser)
    signature = inspect.signature(Clap.classify)
    assert signature.parameters["template"].default == TEMPLATES
    assert parser.get_default("template") == DEFAULT_PARAMS["templates"] == list(TEMPLATES)
    assert ZeroShot().templates == list(TEMPLATES)
    assert fill_keyword_templates(("rain",)) == tuple(fill_templates(["rain"], TEMPLATES))


@pytest.mark.parametrize("text", ["a 🐕", "\ufeff.", "nul \0", "line\nbreak", np.str_("rain")])
def test_other_texts_are_accepted(text: str):
    assert check_texts([text], "caption") == [text] and Clip("a", (text,)).captions == (text,)


@pytest.mark.parametrize("captions", ["a dog", ["a dog"], None, (text for text in "ab")])
def test_captions_of_a_clip_are_a_tuple(captions: object):
    with pytest.raises(ValueError, match="^clip 'a.wav': captions=.* is not a tuple"):
        Clip("a.wav", captions)


@pytest.mark.parametrize("name", [None, 3, float("nan")])
def test_id_of_a_clip_is_a_string(name: object):
    with pytest.raises(ValueError, match="^clip id .* is not a string"):
        Clip(name, ("a dog",))


@pytest.mark.parametrize("label", [3, float("nan"), " "])
def test_label_of_a_clip_is_a_text_or_none(label: object):
    with pytest.raises(ValueError, match="^label 0 of 1 of clip 'a.wav' is"):
        Clip("a.wav", ("a dog",), label=label)


def make_corpus(captions: tuple[str, ...]) -> Corpus:
    class Own(Corpus):
        name = "own"

        def clips(self, split: str) -> list[Clip]:
            return [Clip("a", ("a dog",)), Clip("b", captions)]

    return Own()


def test_dataset_refuses_clips_without_captions():
    with pytest.raises(ValueError, match="^1 clips of own have no caption, the first is 'b'; add captions"):
        ClapDataset(make_corpus(()), "test", sample_rate=8_000)
    assert len(ClapDataset(make_corpus(("rain",)), "test", sample_rate=8_000)) == 2
