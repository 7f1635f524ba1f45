"""Exemplars: which samples are kept, and how they are encoded."""
