"""Evaluators, their metrics and protocol, and the plots of a run."""
