"""vLLM's own server logs, from 0.8 on, as rows of a result set: anyone's logs can calibrate or check a prediction."""
