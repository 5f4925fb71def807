"""`python -m clap rewrite`: texts of tiny language models, the file, and its resume after a kill."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from clap.__main__ import main
from clap.commands.check import compose_datasets
from clap.commands.rewrite import choose_texts, digest_inputs, list_inputs, lock_output, summarize, write_file
from clap.commands.rewriter import Rewriter, digest_folder
from clap.dataset.rewritings import read_rewritings

SOURCE = ("dataset=synthetic", "dataset.num_train=2", "dataset.num_val=1", "dataset.num_test=1")
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}: {{ m['content'] }}]{% endfor %}"
    "{% if add_generation_prompt %}[me: {% endif %}"
)


def save_tokenizer(folder: Path, *, chat: bool = False) -> int:
    """Save a tokenizer of characters; returns its size."""
    symbols = ["<pad>", "</s>", "<unk>", *map(chr, range(32, 127)), "\n"]
    words = tokenizers.models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(words)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE if chat else None
    tokenizer.save_pretrained(folder)
    return len(symbols)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder-decoder."""
    folder = tmp_path_factory.mktemp("models") / "t5"
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "initializer_factor": 3.0}
    config = T5Config(
        vocab_size=save_tokenizer(folder), **sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1
    )
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    vocabulary = save_tokenizer(folder, chat=True)
    sizes = {"n_positions": 400, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.3}
    config = GPT2Config(vocab_size=vocabulary, bos_token_id=1, eos_token_id=1, **sizes)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


class Echo:
    """Writes texts that depend on prompt, seed and place in the batch."""

    def write_texts(self, prompts: list[str], *, seed: tuple[int, int]) -> list[list[str | None]]:
        return [[f"{prompt} {seed} {place}", None] for place, prompt in enumerate(prompts)]


INPUTS = [{"caption": f"caption {number}"} for number in range(7)]
SETTINGS = {"from": "captions", "prompt": "<{}>", "seed": 0, "batch_size": 3, "temperature": 1.0}


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make_rewriter(model: Path, **options: object) -> Rewriter:
    return Rewriter(str(model), **{"device": "cpu", "count": 1, "max_new_tokens": 30, "temperature": 0.0, **options})


def test_file_is_one_that_training_reads(t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "a.jsonl"
    options = ("--count", "2", "--max-new-tokens", "60", "--temperature", "20", "--batch-size", "8", "--prompt", "{}")
    main(["rewrite", *SOURCE, "--model", str(t5), "--output", str(path), *options])
    header, *lines = read_lines(path)
    settings = header["settings"]
    assert settings["from"] == "captions" and settings["prompt"] == "{}" and settings["seed"] == 0
    assert settings["model"] == str(t5) and settings["revision"] == digest_folder(t5)
    assert settings["inputs"].startswith(f"{len(lines)} captions, sha256 ")
    found = read_rewritings(path)
    assert len(found.numbers) == len(lines) == 10
    dropped = sum(count for line in lines for count in line.get("dropped", {}).values())
    assert 0 < len(found.texts) == 2 * len(lines) - dropped
    printed = capsys.readouterr().out
    assert f"{len(found.texts)} rewritings in {len(lines)} lines" in printed and "too long" in printed
    assert f"dataset.captions=rewritten dataset.rewritings={path}" in printed


def test_killed_command_resumes_to_the_same_file(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    write_file(path, Echo(), INPUTS, SETTINGS)
    whole = path.read_bytes()
    assert [line["rewritings"] for line in read_lines(path)[1:4]][2] == ["<caption 2> (0, 0) 2"]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        write_file(path, Echo(), INPUTS, SETTINGS)
        assert path.read_bytes() == whole, size


@pytest.mark.parametrize("changed", [{"seed": 1}, {"prompt": "{}"}, {"temperature": 0.5, "batch_size": 4}])
def test_resume_with_other_settings_is_refused(tmp_path: Path, changed: dict):
    path = tmp_path / "a.jsonl"
    write_file(path, Echo(), INPUTS[:4], SETTINGS)
    before = path.read_bytes()
    names = ", ".join(f"{name}={value!r}" for name, value in (SETTINGS | changed).items() if name in changed)
    with pytest.raises(ValueError, match=rf"a.jsonl was begun with .*, now it is {names}; restore this"):
        write_file(path, Echo(), INPUTS, SETTINGS | changed)
    assert path.read_bytes() == before


def test_inputs_and_weights_have_digests(t5: Path, tmp_path: Path):
    assert len({digest_inputs(own) for own in (INPUTS, INPUTS[:6], INPUTS[::-1])}) == 3
    shutil.copytree(t5, tmp_path / "t5")
    assert digest_folder(tmp_path / "t5") == digest_folder(t5)
    with (tmp_path / "t5" / "model.safetensors").open("ab") as file:
        file.write(b"0")
    assert digest_folder(tmp_path / "t5") != digest_folder(t5)


def test_other_files_are_not_overwritten(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    for content in ('{"caption": "a dog", "rewritings": ["a bark"]}\n', "[1]\n", "text\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match="is not a file of this command; give another"):
            write_file(path, Echo(), INPUTS, SETTINGS)
        assert path.read_text() == content
    with lock_output(path), pytest.raises(BlockingIOError, match="is being written by another process"):
        write_file(path, Echo(), INPUTS, SETTINGS)


def test_keywords_become_captions_of_clips(tmp_path: Path):
    rows = ["path,label_1,label_2,split", "a.wav,dog,rain,train", "b.wav,cat,,train", "c.wav,dog,,test"]
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    config = compose_datasets(["dataset=csv", f"dataset.root={tmp_path}", f"dataset.metadata={tmp_path}/clips.csv"])[0]
    inputs = list_inputs(config, split="train", kind="keywords")
    assert inputs == [{"id": "a.wav", "keywords": ["dog", "rain"]}, {"id": "b.wav", "keywords": ["cat"]}]
    assert list_inputs(config | {"max_clips": 1}, split="train", kind="keywords") == inputs[:1]
    write_file(tmp_path / "a.jsonl", Echo(), inputs, SETTINGS)
    assert read_lines(tmp_path / "a.jsonl")[1]["rewritings"] == ["<dog, rain> (0, 0) 0"]
    assert len(read_rewritings(tmp_path / "a.jsonl").numbers) == 2
    (tmp_path / "clips.csv").write_text("path,caption,split\na.wav,a dog,train\n")
    with pytest.raises(ValueError, match="the train split of csv has no keywords; choose another --split or --from"):
        list_inputs(config, split="train", kind="keywords")


def test_prompt_is_put_into_the_chat_template(gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    rewriter, seen = make_rewriter(gpt2), []
    generate = rewriter.model.generate
    monkeypatch.setattr(
        rewriter.model, "generate", lambda **given: seen.append(given["input_ids"]) or generate(**given)
    )
    rewriter.write_texts(["a dog"], seed=(0, 0))
    assert rewriter.tokenizer.decode(seen[0][0]) == "[user: a dog][me: "


@pytest.mark.parametrize("model", ["t5", "gpt2"])
def test_text_does_not_depend_on_the_padding_of_its_batch(model: str, request: pytest.FixtureRequest):
    rewriter = make_rewriter(request.getfixturevalue(model), max_new_tokens=12)
    rewriter.ends = torch.arange(200)  # every text counts as complete
    prompts = ["a dog", "a long caption of several sounds, one after another"]
    together = rewriter.write_texts(prompts, seed=(0, 0))
    assert together == [rewriter.write_texts([prompt], seed=(0, 0))[0] for prompt in prompts]
    assert all(texts[0] for texts in together)


def test_seed_determines_the_texts(gpt2: Path):
    rewriter = make_rewriter(gpt2, count=3, temperature=1.0)
    first, again, other = (rewriter.write_texts(["a dog", "rain"], seed=(0, n)) for n in (0, 0, 1))
    assert first == again != other and [len(texts) for texts in first] == [3, 3]


def test_text_without_an_end_is_too_long(gpt2: Path):
    rewriter = make_rewriter(gpt2, max_new_tokens=5)
    rewriter.ends = torch.tensor([])
    assert rewriter.write_texts(["a dog"], seed=(0, 0)) == [[None]]


def test_empty_equal_and_long_texts_are_dropped():
    texts = [None, " \n", '"A dog  barks."', "A bark", "a bark.", "“A howl”"]
    expected = {"rewritings": ["A bark", "A howl"], "dropped": {"too_long": 1, "empty": 1, "equal": 2}}
    assert choose_texts(texts, "a dog barks") == expected
    assert choose_texts(["a dog barks"], None) == {"rewritings": ["a dog barks"]}


def test_texts_that_are_mostly_too_long_name_the_option(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"caption": "a dog", "rewritings": ["a bark"], "dropped": {"too_long": 3}}\n')
    assert "larger --max-new-tokens" in summarize(path)
    path.write_text('{"caption": "a dog", "rewritings": ["a bark"], "dropped": {"too_long": 1}}\n')
    assert "--max-new-tokens" not in summarize(path)


def test_pickled_weights_are_not_loaded(t5: Path, tmp_path: Path):
    for path in t5.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"--model .*: no local folder with config.json, model.safetensors"):
        make_rewriter(tmp_path)


def test_model_that_is_not_available_is_named():
    with pytest.raises(FileNotFoundError, match="--model nobody/nothing: no local folder .* go online once"):
        make_rewriter(Path("nobody/nothing"))


def test_prompt_longer_than_the_positions_is_refused(gpt2: Path):
    with pytest.raises(
        ValueError, match=r"has 400 positions, fewer than a prompt of 39\d tokens and --max-new-tokens 30"
    ):
        make_rewriter(gpt2).write_texts(["x" * 377], seed=(0, 0))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--count", "0"), "--count 0 is too small"),
        (("--max-new-tokens", "0"), "--max-new-tokens 0 is too small"),
        (("--temperature", "0"), "--temperature 0 writes one text 4 times"),
        (("--temperature", "-1"), "must be 0 or more"),
        (("--prompt", "rewrite"), "needs {} for the captions"),
        (("--prompt", "{}", "--prompt-file", "absent.txt"), "both given"),
        (("--output", "a.json"), "change the suffix to .jsonl"),
    ],
)
def test_wrong_option_is_named_before_the_model_is_loaded(tmp_path: Path, options: tuple[str, ...], problem: str):
    with pytest.raises(SystemExit, match=problem):
        main(["rewrite", *SOURCE, "--model", "nobody/nothing", "--output", str(tmp_path / "a.jsonl"), *options])
