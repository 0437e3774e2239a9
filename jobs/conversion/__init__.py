"""A conversion from its options to its last receipt, and what may be asked of it afterwards."""
