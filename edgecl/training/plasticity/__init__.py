"""Plasticity: which weights a round may change, and sub-networks for each task."""
