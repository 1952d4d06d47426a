"""The command `absdom`: argparse in, calls of `absdom.api`, results on stdout, chatter on stderr."""
