"""Several engines on one card: shares that work, in which order, with what headroom, as commands.

The parts: ``engine`` (what each engine is asked to hold) -> ``card`` (shares, order, verdict) -> ``render`` and
``commands`` (for people and for a shell). ``hardware`` knows what a card does not run whatever its memory, and
``scenarios`` holds the guide's table against it.
"""
