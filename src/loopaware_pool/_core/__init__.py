"""The driver-independent pool. Private: flavours and tests use it."""
