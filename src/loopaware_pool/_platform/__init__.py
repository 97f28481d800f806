"""Event loops, sockets and connection strings, as Python and the operating system have them. Knows no pool."""
