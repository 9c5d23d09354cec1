"""Pictures with captions as people have them: image folders, tars, tables, listings. What an import reads; no torch."""
