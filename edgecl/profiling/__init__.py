"""What a board can afford, measured."""
