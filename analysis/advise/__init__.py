"""Which weight format and which settings for a card, a load and targets: the guide's decision tree, from figures.

``ask`` (what is wanted) -> ``candidates`` (what could be served, each predicted) -> ``rank`` (in which order, and why)
-> ``render``; ``instead`` says what would serve where nothing does. Several models on one card (``together``) go
through ``analysis.plan``.
"""
