"""The verbs of `python -m clap`, one file each."""
