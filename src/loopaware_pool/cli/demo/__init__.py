"""`loopaware-pool demo [DSN]`: the pools beside the drivers' own, in less than a minute."""
