"""End-to-End Data-Dependent Routing in Multi-Path Neural Networks (Tissera et al.)."""
