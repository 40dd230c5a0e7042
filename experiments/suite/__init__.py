"""The suite: problems on which routing agents can be told apart, and what they score there."""
