"""Published checkpoints of other projects: safe reading, key tables, preprocessing, and export to transformers."""
