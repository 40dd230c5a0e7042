"""Comparing agents, from the command line and from code."""
