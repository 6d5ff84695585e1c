"""The SimPy core: an integer-picosecond clock, the fluid flow network, probes."""
