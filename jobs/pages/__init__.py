"""Pages of HTML: photographs beside their reconstructions, and the demonstration."""
