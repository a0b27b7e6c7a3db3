"""Playing one question: samples, regions, tools, actions, protocols, episodes and their trajectories."""
