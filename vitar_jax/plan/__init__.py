"""Plans a run before any hardware is booked: memory, collectives and a lower bound of the time."""
