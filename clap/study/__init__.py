"""Studies: what is compared, and the report of what was found."""
