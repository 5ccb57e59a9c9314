"""How submitted sweeps and their runs stand, read from their directories."""
