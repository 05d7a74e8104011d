"""Memory over time: does what an engine holds keep growing while the load stays the same?"""
