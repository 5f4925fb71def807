"""Runs in MLflow: tracker, store, prepared pages, upload, registry and serving."""
