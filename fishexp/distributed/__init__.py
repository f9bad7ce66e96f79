"""Workers that train apart and merge what moved."""
