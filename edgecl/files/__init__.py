"""How files are written whole, and how tables are read strictly."""
