"""What the machine did while an engine ran: NVML, /proc, cgroups, and the process that samples them.

Importing this package imports none of its modules: the sampler process starts from here and must start in a
blink.
"""
