"""Plans a run before a machine is booked."""
