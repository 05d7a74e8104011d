"""Fits the memory terms of an engine start to measurements: own result sets, or public figures.

Importing this package is cheap; numpy and scipy are imported by the functions that need them.
"""
