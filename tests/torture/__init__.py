"""
Storms: seeded histories of everything that can happen to a pool, on a real server, with a model that checks it.

`make torture SEED=… MINUTES=…`, or `PYTHONPATH=tests python -m torture --help`.
"""
