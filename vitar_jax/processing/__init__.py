"""From files and strings to arrays: images, chat, positions and packing, on the host in numpy."""
