"""DICOS: what differs from DICOM inside a data set."""
