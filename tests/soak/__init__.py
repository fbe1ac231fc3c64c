"""Every transport at once on one loop, with random behaviour, for as long as one likes."""
