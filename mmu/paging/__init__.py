"""Page tables: geometry, SPTE encoding, table pages."""
