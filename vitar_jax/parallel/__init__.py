"""Device meshes, the table of sharding rules, resharding and TPU topologies."""
