"""Several engines on one device at once: what each still does, and what it costs it that the others are there.

``request`` (members and where streams go) -> ``measure`` (engines up in order, the way through) -> ``streams`` (who is
driven when, alone and together) -> ``client`` (a process for each stream) -> ``rows`` (sums, interference, columns).
"""
