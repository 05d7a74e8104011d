"""One vLLM engine at a time: launch it, ask it, end it."""
