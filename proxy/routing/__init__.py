"""Statement text and catalog to a route."""
