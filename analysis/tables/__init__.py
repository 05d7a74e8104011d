"""The calibrated multiplier tables: what models take by size and weight format, beside the guide's figures."""
