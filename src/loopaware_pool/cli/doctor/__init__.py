"""`loopaware-pool doctor [DSN]`: does what is here suit the pools that are planned?"""
