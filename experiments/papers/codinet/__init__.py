"""CoDiNet: Path Distribution Modeling with Consistency and Diversity for Dynamic Routing (Wang et al.)."""
