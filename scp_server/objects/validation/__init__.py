"""Whether an object is what its class says: rules as data, and the pure validator that applies them."""
