"""Deciding How to Decide: Dynamic Routing in Artificial Neural Networks (McGill and Perona)."""
