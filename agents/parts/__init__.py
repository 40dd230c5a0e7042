"""What agents are made of: arrangements, tables and approximators, losses, and base classes of several algorithms."""
