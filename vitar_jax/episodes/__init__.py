"""How one question is played: samples, regions, tools, actions, protocols, episodes and their trajectories."""
