"""The training loop, and the state, signals and cost that belong to it."""
