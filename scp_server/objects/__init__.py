"""DICOM and DICOS objects without I/O: what the bytes of a data set say."""
