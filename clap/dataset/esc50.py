"""ESC-50 (Piczak 2015) in its published layout, or a subset of its classes such as ESC-10."""

from collections.abc import Mapping
from pathlib import Path

from clap.dataset.folds import Folds


class ESC50(Folds):
    """Five-second clips of 50 classes in five folds; see `Folds` for the arguments.

    Layout of root: meta/esc50.csv and audio/NAME.wav.
    """

    name, title = "esc50", "ESC-50"
    source = "github.com/karolpiczak/ESC-50"
    licence = "CC BY-NC 3.0; the ten classes of ESC-10 CC BY 3.0"
    citation = "K. Piczak. ESC: Dataset for environmental sound classification. ACM Multimedia 2015."
    index = "meta/esc50.csv"
    file_column, label_column, recording_column = "filename", "category", "src_file"
    num_folds, max_duration = 5, 5.0

    @property
    def fold_sizes(self) -> dict[int, int]:
        """Eight clips of each class in the index."""
        return dict.fromkeys(range(1, self.num_folds + 1), 8 * len({row["category"] for row in self.rows}))

    def find_path(self, row: Mapping[str, str]) -> Path:
        return self.root / "audio" / row["filename"]
