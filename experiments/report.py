"""Writes the report of a study: python experiments/report.py STUDY, like python -m clap report STUDY."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from clap.__main__ import main  # noqa: E402 (after adding the checkout to the path)

if __name__ == "__main__":
    main(["report", "--output", str(HERE), *sys.argv[1:]])
