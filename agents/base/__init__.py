"""What an agent is: its base class, its options and its name, the loop that trains it, its checkpoints."""
