"""Heads: from statistics to answers, their confidence, and unknown."""
