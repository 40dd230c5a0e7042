"""Diversity and Depth in Per-Example Routing Models (Ramachandran and Le)."""
