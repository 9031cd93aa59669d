"""The groups of options, one file each. A room receives its own group, never the whole."""
