"""Turns files and strings into arrays: images, chat, positions and packing. Runs on the host, in numpy."""
