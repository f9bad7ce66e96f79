"""What lies next to the operating system and the hub: files, signals, hardware, text tables."""
