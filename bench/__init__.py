"""Launch real vLLM engines over a grid and record what they really used."""
