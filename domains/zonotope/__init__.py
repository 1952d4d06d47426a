"""Zonotopes: a centre, generators with named symbols, and a box part, kept within a budget of bytes."""

from absdom.domains.zonotope import recipe, rules
from absdom.domains.zonotope.recipe import Zonotope

__all__ = ["Zonotope", "recipe", "rules"]
