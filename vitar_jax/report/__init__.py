"""Opens trajectories of this and other trainers, in a report or as files of ATIF."""
