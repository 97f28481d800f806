"""The commands that come with the library, built on its public API only."""
