"""Arc-Halo inside of the programs that train and serve models; each needs what it is named by."""
