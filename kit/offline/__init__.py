"""The bundle and the mirror: the kit where no network is."""
