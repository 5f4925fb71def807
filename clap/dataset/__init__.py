"""Corpora, one file each, and what turns them into batches."""
