"""Playing episodes: KV cache, jitted sampling loop, and the host that parses, runs tools and re-encodes images."""
