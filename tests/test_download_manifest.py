"""The status of each clip in download.jsonl."""

import json
from pathlib import Path

from clap.download.manifest import Manifest, Status


def test_manifest_skips_a_truncated_line(tmp_path: Path):
    Manifest(tmp_path).add([Status("a\u2028ä.wav", "here", size=3), Status("b.wav", "gone", reason="private")])
    with (tmp_path / "download.jsonl").open("a") as file:
        file.write('{"path": "c.wa')
    manifest = Manifest(tmp_path)
    assert manifest[tmp_path / "b.wav"] == Status("b.wav", "gone", reason="private")
    manifest.compact()
    lines = (tmp_path / "download.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["a\u2028ä.wav", "b.wav"]
