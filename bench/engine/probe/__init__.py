"""What runs inside the engine's worker process: memory and kernels at every phase, in bytes.

Everything here imports only the standard library at module level; torch and vLLM are looked up when a phase
ends, in the worker, where they are loaded already. `worker` is the only module an engine is told to import.
"""
