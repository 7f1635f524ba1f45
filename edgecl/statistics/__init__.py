"""Class statistics: sums over features, exact and additive."""
