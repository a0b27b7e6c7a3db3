"""What happens to one question: samples, boxes, and (beside them) tools, actions, protocols, trajectories."""
