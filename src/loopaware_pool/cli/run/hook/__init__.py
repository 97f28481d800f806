"""A folder that `loopaware-pool run` puts on `PYTHONPATH`, so that Python imports what is in it when it starts."""
