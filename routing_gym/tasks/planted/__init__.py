"""Problems with a known best routing, and what they are made of."""
