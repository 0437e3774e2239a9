"""Ray: a cluster's resources, actors, and who gets which shard."""
