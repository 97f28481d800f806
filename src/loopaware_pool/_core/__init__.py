"""The driver-independent pool. Private: only the flavours and tests use it."""
