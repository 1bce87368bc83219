"""Where objects lie: `base` says what a storage is, the other modules are storages."""
