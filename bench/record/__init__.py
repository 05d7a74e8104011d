"""Result sets: one typed schema, one Parquet file per engine start and table, written whole or not at all."""
