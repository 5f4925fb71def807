"""Corpora, one file each, and the dataset and loader that turn them into batches."""
