"""Pure jnp losses: arrays in, values per item out."""
