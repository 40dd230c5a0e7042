"""Routing Networks: Adaptive Selection of Non-Linear Functions for Multi-Task Learning (Rosenbaum et al.)."""
