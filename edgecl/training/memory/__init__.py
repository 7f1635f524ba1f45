"""Memories: what a method keeps of earlier rounds."""
