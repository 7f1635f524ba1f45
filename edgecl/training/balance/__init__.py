"""Balance: correcting the bias toward new classes."""
