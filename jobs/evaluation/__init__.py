"""What compression costs people and networks, by real files: see the README of this folder."""
