"""What a finished run leaves behind: manifest, CSV, Perfetto timeline."""
