"""A start that failed for memory: why, by how much, and the smallest change predicted to work.

The parts: ``case`` (what the row says) -> ``terms`` (what a setting takes, on a GPU or on a CPU engine) -> ``ladder``
(changes in the order of least harm, each with its predicted gain) -> ``render``.
"""
