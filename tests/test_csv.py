"""Own data from CSV and JSONL: the clips of a valid index, and one-line errors with file and line."""

import json
from pathlib import Path

import pytest

from clap.corpus import SPLITS, Clip
from clap.dataset.csv import CSV


def read(folder: Path, text: str | bytes, name: str = "metadata.csv", **options) -> CSV:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CSV(folder, path, **options)


def read_lines(folder: Path, *rows: dict) -> CSV:
    return read(folder, "\n".join(json.dumps(row) for row in rows), "metadata.jsonl")


def all_clips(corpus: CSV) -> dict[str, Clip]:
    return {clip.id: clip for split in SPLITS for clip in corpus.clips(split)}


def find_error(folder: Path, text: str | bytes, name: str = "metadata.csv") -> str:
    with pytest.raises(ValueError) as error:
        read(folder, text, name)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{folder}/")


def test_repeated_rows_are_one_clip(tmp_path):
    clips = all_clips(read(tmp_path, "path,caption\na.wav,a dog\nb.wav,rain\na.wav,a dog barks\n"))
    assert clips["a.wav"].captions == ("a dog", "a dog barks") and clips["b.wav"].captions == ("rain",)


def test_numbered_caption_columns_are_read_in_order(tmp_path):
    clips = all_clips(read(tmp_path, "path,caption_1,caption_2\na.wav,a dog,a bark\n"))
    assert clips["a.wav"].captions == ("a dog", "a bark")


def test_some_captions_can_be_blank(tmp_path):
    clips = all_clips(read(tmp_path, "path,caption_1,caption_2,caption_3\na.wav,a dog, ,\nb.wav,one,two,three\n"))
    assert clips["a.wav"].captions == ("a dog",) and len(clips["b.wav"].captions) == 3


def test_other_columns_that_start_with_caption_are_not_captions(tmp_path):
    clips = all_clips(read(tmp_path, "path,caption_1,caption_source\na.wav,a dog,a person\n"))
    assert clips["a.wav"].captions == ("a dog",)


def test_jsonl_accepts_lists_of_captions(tmp_path):
    clips = all_clips(read_lines(tmp_path, {"path": "a.wav", "caption": ["a dog", "a bark"]}))
    assert clips["a.wav"].captions == ("a dog", "a bark")


def test_split_column_sets_the_split(tmp_path):
    corpus = read(tmp_path, "path,caption,split\na.wav,x,test\nb.wav,y,train\nc.wav,z,val\n")
    assert [corpus.clips(split)[0].id for split in SPLITS] == ["b.wav", "c.wav", "a.wav"]


def test_one_file_for_each_split(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"path,caption\n{split}.wav,x\n")
    corpus = CSV(tmp_path, {split: tmp_path / f"{split}.csv" for split in ("train", "test")})
    assert [[clip.id for clip in corpus.clips(split)] for split in SPLITS] == [["train.wav"], [], ["test.wav"]]


def test_hash_gives_each_split_its_share(tmp_path):
    rows = "".join(f"{i}.wav,x\n" for i in range(2000))
    corpus = read(tmp_path, "path,caption\n" + rows, val_fraction=0.1, test_fraction=0.2)
    assert [len(corpus.clips(split)) / 2000 for split in SPLITS] == pytest.approx([0.7, 0.1, 0.2], abs=0.03)


def test_added_clip_does_not_move_other_clips(tmp_path):
    rows = [f"{i}.wav,x\n" for i in range(50)]
    before = read(tmp_path, "path,caption\n" + "".join(rows))
    after = read(tmp_path, "path,caption\nnew.wav,x\n" + "".join(reversed(rows)))
    for split in SPLITS:
        assert {clip.id for clip in before.clips(split)} == {c.id for c in after.clips(split)} - {"new.wav"}


def test_label_alone_makes_a_caption(tmp_path):
    clip = all_clips(read(tmp_path, "path,label\na.wav,dog\n"))["a.wav"]
    assert clip.captions == ("the sound of dog",) and clip.label == "dog" and clip.captions_from_labels


def test_written_captions_are_not_from_labels(tmp_path):
    assert not all_clips(read(tmp_path, "path,caption,label\na.wav,x,dog\n"))["a.wav"].captions_from_labels
    rows = '{"path": "a.wav", "label": "dog"}\n{"path": "a.wav", "label": "dog", "caption": "a dog barks"}\n'
    assert not all_clips(read(tmp_path, rows, name="clips.jsonl"))["a.wav"].captions_from_labels


def test_blank_label_is_none(tmp_path):
    assert all_clips(read(tmp_path, "path,caption,label\na.wav,x,\n"))["a.wav"].label is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("path,label_1,label_2\na.wav,dog,rain\nb.wav,dog,\nc.wav,,rain\n", "clips.csv"),
        (
            '{"path": "a.wav", "label": ["dog", "rain"]}\n{"path": "b.wav", "label": ["dog", "dog"]}\n'
            '{"path": "c.wav", "label": "rain"}\n',
            "clips.jsonl",
        ),
    ],
)
def test_clip_has_several_labels(tmp_path, text, name):
    clips = all_clips(read(tmp_path, text, name))
    assert [(clip.label, clip.all_labels) for clip in clips.values()] == [
        (None, ("dog", "rain")),
        ("dog", ("dog",)),
        ("rain", ("rain",)),
    ]
    assert clips["a.wav"].captions == ("the sound of dog and rain",) and clips["a.wav"].captions_from_labels
    assert clips["a.wav"].keywords == ("dog", "rain") and clips["b.wav"].keywords == ()


def test_rows_of_one_path_with_other_labels_are_refused(tmp_path):
    rows = "path,caption,label_1,label_2\na.wav,x,dog,rain\na.wav,y,dog,\n"
    with pytest.raises(ValueError, match="a.wav has label dog, but dog, rain in .*line 2; choose one"):
        read(tmp_path, rows)


def test_byte_order_mark_is_dropped(tmp_path):
    assert "a.wav" in all_clips(read(tmp_path, "\ufeffpath,caption\na.wav,é\n".encode()))


def test_quoted_caption_can_contain_commas_and_line_breaks(tmp_path):
    clips = all_clips(read(tmp_path, 'path,caption\na.wav,"a dog, then\na ""cat"""\n'))
    assert clips["a.wav"].captions == ('a dog, then\na "cat"',)


SPREADSHEETS = {
    "commas at the ends": "path,caption,,\na.wav,x,,\n,,,\nb.wav,y,,\n,,,\n",
    "commas behind the rows only": "path,caption\na.wav,x,,\nb.wav,y,, \n",
    "fewer commas in the rows": "path,caption,,,\na.wav,x\nb.wav,y,\n",
    "named empty column": "path,caption,Unnamed: 2\na.wav,x,\nb.wav,y,\n",
    "index of a data frame": ",path,caption\n0,a.wav,x\n1,b.wav,y\n",
    "spaces": " path , caption \n a.wav , x \nb.wav\xa0,y\n",
    "empty split": "path,caption,split\na.wav,x,\nb.wav,y, \n",
    "blank lines": "\n , \npath,caption\n\na.wav,x\n,\nb.wav,y\n",
}


@pytest.mark.parametrize("kind", SPREADSHEETS)
@pytest.mark.parametrize("name", ["metadata.csv", "METADATA.CSV"])
def test_spreadsheet_is_read(tmp_path, kind, name):
    clips = all_clips(read(tmp_path, SPREADSHEETS[kind], name))
    assert {clip.id: clip.captions for clip in clips.values()} == {"a.wav": ("x",), "b.wav": ("y",)}


def test_empty_captions_beside_labels_are_ignored(tmp_path, caplog):
    text = "path,caption_1,caption_2,label\na.wav,,,dog\nb.wav, ,,cat\n"
    assert all_clips(read(tmp_path, text))["b.wav"].captions == ("the sound of cat",)
    assert "no row has a text in caption_1, caption_2, which is ignored" in caplog.text


@pytest.mark.parametrize("name", ["m.JSONL", "m.ndjson"])
def test_suffix_of_jsonl_may_be_spelled_differently(tmp_path, name):
    assert list(all_clips(read(tmp_path, '{"path": "a.wav", "caption": "x"}', name))) == ["a.wav"]


@pytest.mark.parametrize("name", ["m.xlsx", "m.JSON", "m.parquet"])
def test_other_tables_say_how_to_export_them(tmp_path, name):
    assert "is not CSV or JSONL; export it as CSV UTF-8" in find_error(tmp_path, "x", name)


@pytest.mark.parametrize(
    ("written", "file"),
    [
        (" lead.wav", " lead.wav"),
        (" lead.wav ", "lead.wav"),
        ("a/caf\u00e9/\u00e9.wav", "a/cafe\u0301/e\u0301.wav"),
        ("e\u0301.wav", "\u00e9.wav"),
        ("a\\b\\c.wav", "a/b/c.wav"),
        ("a\\b.wav", "a\\b.wav"),
    ],
)
def test_recording_is_found_under_another_spelling(tmp_path, written, file):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    (clip,) = all_clips(read(tmp_path, f"path,caption\n{written},x\n")).values()
    assert clip.path == tmp_path / file and clip.id in (written.strip(), written.replace("\\", "/"))


def test_id_and_split_do_not_depend_on_the_files(tmp_path):
    text = "path,caption\n lead.wav,x\ncaf\u00e9.wav,y\n"
    before = {split: [clip.id for clip in read(tmp_path, text).clips(split)] for split in SPLITS}
    for name in (" lead.wav", "cafe\u0301.wav"):
        (tmp_path / name).touch()
    assert before == {split: [clip.id for clip in read(tmp_path, text).clips(split)] for split in SPLITS}


def test_two_normal_forms_of_a_name_stay_two_files(tmp_path):
    for name in ("\u00e9.wav", "e\u0301.wav"):
        (tmp_path / name).touch()
    clips = all_clips(read(tmp_path, "path,caption\n\u00e9.wav,x\ne\u0301.wav,y\n"))
    assert {clip.id: clip.path.name for clip in clips.values()} == {name: name for name in clips} and len(clips) == 2


def test_names_that_differ_in_spaces_are_not_merged(tmp_path):
    for name in (" a.wav", "a.wav"):
        (tmp_path / name).touch()
    assert "differ only in spaces at the ends; rename one" in find_error(tmp_path, "path,caption\n a.wav,x\na.wav,y\n")


def test_root_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "m.csv").write_text(f"path,caption\n{tmp_path}/real/a.wav,x\n{tmp_path}/link/b.wav,y\n")
    for root in ("link", "real", "real/"):
        assert set(all_clips(CSV(tmp_path / root, tmp_path / "m.csv"))) == {"a.wav", "b.wav"}


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x0c"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_only_line_breaks_end_a_row(tmp_path, separator, name):
    row = {"path": f"a{separator}b.wav", "caption": f"a{separator}dog"}
    text = json.dumps(row, ensure_ascii=False) if name.endswith("l") else "\n".join(map(",".join, (row, row.values())))
    clip = all_clips(read(tmp_path, text, name))[row["path"]]
    assert clip.captions == (row["caption"],)


def test_windows_line_ends_and_blank_lines_are_accepted(tmp_path):
    assert len(all_clips(read(tmp_path, "path, caption\r\na.wav,x\r\n\r\nb.wav,y\r\n"))) == 2


def test_duplicate_row_adds_nothing(tmp_path):
    assert all_clips(read(tmp_path, "path,caption\na.wav,x\na.wav,x\n"))["a.wav"].captions == ("x",)


def test_spellings_of_a_path_are_one_clip(tmp_path):
    clips = all_clips(read(tmp_path, f"path,caption\na/b.wav,x\n./a/b.wav,y\n{tmp_path}/a/b.wav,z\n"))
    assert list(clips) == ["a/b.wav"] and clips["a/b.wav"].path == tmp_path / "a" / "b.wav"


def test_root_can_be_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.csv").write_text("path,caption\nb.wav,x\n")
    assert list(all_clips(CSV(".", "m.csv"))) == ["b.wav"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,caption\na.wav,x\n../b.wav,y\n", "metadata.csv, line 3: path='../b.wav' is outside root="),
        ("path,caption\n/etc/b.wav,y\n", "metadata.csv, line 2: path='/etc/b.wav' is outside"),
        ("path,caption\na.wav,x\nb.wav, \n", "metadata.csv, line 3: the caption is empty"),
        ("path,caption_1,caption_2\na.wav,,\n", "metadata.csv, line 2: the caption is empty"),
        ("path,caption\n,x\n", "metadata.csv, line 2: path is empty"),
        ("path,label\na.wav,\n", "metadata.csv, line 2: label is empty"),
        (
            "path,text\na.wav,x\n",
            "line 2: no column caption, caption_1 ... caption_n or label; the columns are path, te",
        ),
        ("file,caption\na.wav,x\n", "metadata.csv: column path is missing; the columns are file, caption"),
        (
            "path,caption\na.wav,x\nb.wav,rain, wind\n",
            "metadata.csv, line 3: 3 fields, but the header has 2 (path, cap",
        ),
        ("path,caption,label\na.wav,x\n", "metadata.csv, line 2: 2 fields, but the header has 3"),
        (
            "path,caption,caption\na.wav,x,y\n",
            "metadata.csv, line 1: column 'caption' is repeated; name several captions caption_1",
        ),
        ("path,caption,split\na.wav,x,dev\n", "metadata.csv, line 2: split='dev' is not one of train, val, test"),
        ("path,caption,split\na.wav,x,\nb.wav,y,val\n", "line 2: split='' is not one of train, val, test"),
        ("path,caption,\na.wav,rain, wind\n", "metadata.csv, line 2: 3 fields, but the header has 2 (path, caption)"),
        ("path\tcaption\na.wav\train\n", "metadata.csv, line 1: the delimiter is '\\t'; save the file with commas"),
        ("path,caption\n".encode("utf-16"), "metadata.csv, line 1: not UTF-8; save the file in that encoding"),
        ("path,caption\n".encode("utf-16-le"), "metadata.csv, line 1: '\\x00' is a control character"),
        ('path,caption\na.wav,x\nb.wav,"y\n', "metadata.csv, line 3: not CSV (unexpected end of data)"),
        ('path,caption\na.wav,"x\nb.wav,y\nc.wav,"z"\n', "metadata.csv, line 2: not CSV"),
        (
            "path;caption\na.wav;rain, wind\n",
            "metadata.csv, line 1: the delimiter is ';'; save the file with commas",
        ),
        ("", "metadata.csv has no rows"),
        ("path,caption\n", "metadata.csv has no rows"),
        (b"path,caption\na.wav,x\nb.wav,caf\xe9\n", "metadata.csv, line 3: not UTF-8"),
        ("path,caption,split\na.wav,x,train\na.wav,y,test\n", "line 3: a.wav has split test, but train in"),
        ("path,caption,label\na.wav,x,dog\na.wav,y,cat\n", "line 3: a.wav has label cat, but dog in"),
        ("path,caption,recording\na.wav,x,r1\na.wav,y,\n", "line 3: a.wav has recording None, but r1 in"),
    ],
)
def test_invalid_csv_names_file_and_line(tmp_path, text, message):
    assert message in find_error(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.wav", "caption": "x"}\n{"path": \n', "metadata.jsonl, line 2: not JSON"),
        ("[1]\n", "metadata.jsonl, line 1: not a JSON object"),
        ("[" * 100_000, "metadata.jsonl, line 1: not JSON (nested too deeply)"),
        ('{"path": "a.wav", "caption": 3}', "metadata.jsonl, line 1: caption=3 is not a string; put it in quotes"),
        ('{"path": 3, "caption": "x"}', "metadata.jsonl, line 1: path=3 is not a string; put it in quotes"),
        ('{"path": "a.wav", "caption": []}', "metadata.jsonl, line 1: the caption is empty"),
        ('{"path": "a.wav", "caption": "x"}\n{"caption": "y"}', "metadata.jsonl, line 2: path is empty"),
        (
            '{"path": "a", "caption": "x", "split": "val"}\n{"path": "b", "caption": "x"}',
            "line 2: split='' is not one of",
        ),
    ],
)
def test_invalid_jsonl_names_file_and_line(tmp_path, text, message):
    assert message in find_error(tmp_path, text, "metadata.jsonl")


def test_missing_metadata_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.csv is missing; set dataset.metadata"):
        CSV(tmp_path, tmp_path / "absent.csv")


def test_missing_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="^root=.*absent is not a folder"):
        CSV(tmp_path / "absent", tmp_path / "metadata.csv")


def test_unknown_split_of_a_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="'dev' is not one of train, val, test"):
        CSV(tmp_path, {"dev": "a.csv"})


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.5, 0.5)])
def test_fractions_must_leave_training_clips(tmp_path, val, test):
    with pytest.raises(
        ValueError, match="^val_fraction=.* and test_fraction=.* must be 0 or more, and together below 1"
    ):
        read(tmp_path, "path,caption\na.wav,x\n", val_fraction=val, test_fraction=test)
