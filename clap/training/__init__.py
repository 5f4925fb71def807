"""The training loop, its settings and state, signals and cost."""
