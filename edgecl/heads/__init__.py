"""Heads: from statistics to predictions, their confidence, and unknown samples."""
