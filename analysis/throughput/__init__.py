"""How fast it goes: a roofline of the engine's steps, fitted to measurements, and what it predicts."""
