"""What can be done with a trained agent: classify images, extract and prune its network, add tasks."""
