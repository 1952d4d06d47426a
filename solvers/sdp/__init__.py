"""Semidefinite programs over an Encoding: lifted relaxations whose answers are made safe by a verified shift."""
