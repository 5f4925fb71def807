"""python -m clap check: faults in the clips of a corpus, and overlap of its splits with evaluation data."""
