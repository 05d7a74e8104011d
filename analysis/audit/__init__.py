"""The guide's claims as named checks, each with a verdict and the figure behind it."""
