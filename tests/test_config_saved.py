"""Configs of checkpoints: aliases, interpolations and sizes that are refused."""

from pathlib import Path

import pytest

from clap.config.saved import MAX_BYTES, check_integers, check_plain, read_saved_yaml


def read(tmp_path: Path, text: str) -> dict:
    (tmp_path / "config.yaml").write_text(text)
    return read_saved_yaml(tmp_path / "config.yaml")


def test_plain_config_is_read(tmp_path: Path):
    assert read(tmp_path, "a: {b: [1, 1.0e-05, null]}\nc: text\n") == {"a": {"b": [1, 1e-5, None]}, "c": "text"}


def test_aliases_of_aliases_are_refused(tmp_path: Path):
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    with pytest.raises(
        ValueError, match="config.yaml: refused, it has the yaml anchor or alias 'a0'; write values out"
    ):
        read(tmp_path, "\n".join(["a0: &a0 [x]", *lines]))


@pytest.mark.parametrize("text", ["a: ${oc.env:SECRET}", r'a: "\x24{oc.env:SECRET}"', "${oc.env:SECRET}: 1"])
def test_interpolation_is_refused(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(
        ValueError, match="refused, it has the interpolation '..oc.env:SECRET.'; write its value"
    ) as error:
        read(tmp_path, text)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 40 + "]" * 40, "more than 32 levels"),
        ("a: " + "x" * MAX_BYTES, "a config of .* bytes; at most"),
        ("a: !!python/object/apply:os.system [ls]", "not a valid config"),
        ("a: [", "not a valid config"),
    ],
    ids=["deep", "large", "tag", "damaged"],
)
def test_other_configs_are_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_huge_integer_is_refused_but_not_as_a_seed():
    check_integers({"dataset": {"num_train": 2880, "seed": 2**32}}, "checkpoint")
    with pytest.raises(ValueError, match="checkpoint: refused, its config has dataset.num_test=10{12}; at most"):
        check_integers({"dataset": {"num_test": 10**12}}, "checkpoint")


@pytest.mark.parametrize("values", [{"a": ["${oc.env:HOME}"]}, {"${x}": 1}])
def test_interpolation_in_json_is_refused(values: dict):
    with pytest.raises(ValueError, match="config.json: refused, it has the interpolation"):
        check_plain(values, "config.json")
