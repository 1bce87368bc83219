"""What the archive knows of its objects: patients, studies, series, instances and their parts."""
