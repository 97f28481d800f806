"""
Every order in which small stories can happen to a pool's core, enumerated, not sampled.

`PYTHONPATH=tests python -m interleavings` plays them all and counts them.
"""
