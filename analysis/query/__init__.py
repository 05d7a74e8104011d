"""SQL over result sets, by DuckDB: one view per table, over any number of sets, read-only."""
