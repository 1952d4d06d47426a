"""Schedules and plans: what a recipe compiles to, and the loop that runs it."""
