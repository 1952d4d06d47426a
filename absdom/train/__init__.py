"""Training provably robust networks through the same plans that verify them."""
