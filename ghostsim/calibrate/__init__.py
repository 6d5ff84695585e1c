"""Measure the machine's GPU: a table of its probes and a part that stands for it.

`points` says what to measure, a clock measures one point, `derive` makes constants of the times, `output` writes
table and part. The only clock of the program is `cuda`; everything else knows nothing of CUDA.
"""
