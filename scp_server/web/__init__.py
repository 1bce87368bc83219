"""HTTP: health and metrics (and later DICOMweb and pages)."""
