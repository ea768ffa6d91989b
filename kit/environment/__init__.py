"""What a result depends on: the machine, the lock, the packages."""
