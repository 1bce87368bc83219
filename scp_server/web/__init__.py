"""HTTP: health (and later metrics, DICOMweb and pages)."""
