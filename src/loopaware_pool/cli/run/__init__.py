"""`loopaware-pool run`: run a program, unmodified, on our pools."""
