"""Hardware: this host, its measured limits, and data sheets of other machines."""
