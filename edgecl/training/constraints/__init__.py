"""Constraints: what holds a network to what it knew."""
