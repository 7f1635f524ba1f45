"""Class statistics: what is known of features as sums, exact and additive."""
