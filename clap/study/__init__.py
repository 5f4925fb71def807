"""Studies: sweeps that compare configurations, their statistics and their reports."""
