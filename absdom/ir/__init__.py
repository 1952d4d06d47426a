"""The intermediate representation: graphs of ops as values."""
