"""Studies of attention and sketches that need no hardware."""
