"""`loopaware-pool top ADDRESS`: watch the pools of a running process, which serves a live view there."""
