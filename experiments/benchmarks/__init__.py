"""What routing costs: the parts of `routing-gym bench`."""
