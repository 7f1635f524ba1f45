"""Exemplars: stored samples, which are kept, and how they are coded."""
