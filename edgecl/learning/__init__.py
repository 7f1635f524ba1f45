"""The fast learner: what is known, and how it is committed and served."""
