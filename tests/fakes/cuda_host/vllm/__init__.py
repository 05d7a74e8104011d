"""A stand-in for the CUDA build of vLLM, for machines without a GPU.

It serves the endpoints the harness uses and moves the fake NVML's memory as an engine would, so that what the harness
makes of a GPU can be tested end to end. It computes nothing: no figure that comes out of it is a measurement.
"""
