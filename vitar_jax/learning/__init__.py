"""Objectives, advantages, rewards, optimizer, checkpoints, and the loop that ties them."""
