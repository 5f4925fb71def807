"""Runs in MLflow: tracker, store, views, upload, model registry and serving."""
