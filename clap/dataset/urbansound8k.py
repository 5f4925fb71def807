"""UrbanSound8K (Salamon et al. 2014) in its published layout and folds."""

from collections.abc import Mapping
from pathlib import Path

from clap.dataset.folds import Folds

FOLD_SIZES = {1: 873, 2: 888, 3: 925, 4: 990, 5: 936, 6: 823, 7: 838, 8: 806, 9: 816, 10: 837}


class UrbanSound8K(Folds):
    """Clips of up to four seconds, ten classes, in ten folds; see `Folds` for the arguments.

    All clips of a recording (`fsID`) are in one published fold, so that no recording is in both training and test.

    Layout of root: metadata/UrbanSound8K.csv and audio/fold1/ to audio/fold10/.
    """

    name, title = "urbansound8k", "UrbanSound8K"
    source = "zenodo.org/records/1203745"
    licence = "CC BY-NC 4.0"
    citation = "J. Salamon, C. Jacoby, J. Bello. A dataset and taxonomy for urban sound research. ACM Multimedia 2014."
    index = "metadata/UrbanSound8K.csv"
    file_column, label_column, recording_column = "slice_file_name", "class", "fsID"
    num_folds, max_duration = 10, 4.0
    fold_sizes = FOLD_SIZES

    def find_path(self, row: Mapping[str, str]) -> Path:
        return self.root / "audio" / f"fold{int(row['fold'])}" / row["slice_file_name"]
