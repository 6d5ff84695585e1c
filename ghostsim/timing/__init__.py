"""Pure functions of a timing set; nothing here knows the simulation clock."""
