"""The benchmark's process: one method and seed."""
